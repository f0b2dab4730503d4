"""Threads of torch and of Numba, which may be the same."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


@contextmanager
def preserve_torch_threads() -> Iterator[None]:
    """Keep the number of torch's threads while Numba may start its own."""
    # Where both use the same library they share its threads, and Numba's start sets their
    # number for torch as well.
    n_threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != n_threads:
        torch.set_num_threads(n_threads)


def leave_threads_to_training(run: Callable[[Callable[[], Any]], object]) -> None:
    """Make torch use one thread in the writer thread, where `run` calls a function."""
    # A second team of OpenMP threads, once started, slows down every parallel loop of the
    # first: together they are more than the processors.
    n_threads = torch.get_num_threads()
    # A thread takes the number that is set for all when it first asks, then its own.
    run(torch.get_num_threads)
    run(partial(torch.set_num_threads, 1))
    # The call above has also set the number for threads to come: set it back.
    torch.set_num_threads(n_threads)
