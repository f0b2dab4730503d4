"""Control the threads of torch and Numba, which may share one pool of threads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


@contextmanager
def preserve_torch_threads() -> Iterator[None]:
    """Keep torch's number of threads while Numba may start threads."""
    # If torch and Numba use the same threading library, they share its threads. When Numba
    # starts these threads, it sets their number for torch as well.
    n_threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != n_threads:
        torch.set_num_threads(n_threads)


def leave_threads_to_training(run: Callable[[Callable[[], Any]], object]) -> None:
    """Make torch use a single thread in the writer thread, in which `run` calls functions."""
    # A second team of OpenMP threads would slow down every parallel loop of the first team,
    # because both teams together have more threads than there are processors.
    n_threads = torch.get_num_threads()
    # A thread copies the global number when it first asks for it, and later uses its own
    # number: ask before setting that number.
    run(torch.get_num_threads)
    run(partial(torch.set_num_threads, 1))
    # The call above has also changed the number for future threads: restore it.
    torch.set_num_threads(n_threads)
