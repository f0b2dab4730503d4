"""Threads of torch and of Numba, which may be the same."""

from collections.abc import Iterator
from contextlib import contextmanager

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
