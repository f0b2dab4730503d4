"""Threads of torch and of Numba, which may be the same."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


@contextmanager
def number_left_to_torch() -> Iterator[None]:
    """Keep the number of torch's threads while Numba may start its own.

    Where both use the same library they share its threads, and the start sets their number
    for torch as well.
    """
    n_threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != n_threads:
        torch.set_num_threads(n_threads)


def leave_threads_to_training(run: Callable[[Callable[[], Any]], object]) -> None:
    """Have torch work in one thread where the store is written.

    A second team of OpenMP threads, once there, slows down every parallel loop of the
    first, since together they are more than the processors.

    Parameters
    ----------
    run : callable
        Runs a function in the thread that writes, and waits for it.
    """
    n_threads = torch.get_num_threads()
    # A thread takes the number that is set for all when it first asks, then its own.
    run(torch.get_num_threads)
    run(partial(torch.set_num_threads, 1))
    # What this sets for threads to come was not to change.
    torch.set_num_threads(n_threads)
