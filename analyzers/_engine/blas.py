"""Limit BLAS to one thread, because more would compete with the threads of Dask."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from threadpoolctl import threadpool_limits

_lock = Lock()
_limits: list[threadpool_limits] = []
_n_users = 0


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread in this process while any such block is open."""
    # The limit holds for the whole process, but tasks start and end in many threads: the
    # first user sets it, and the last one lifts it.
    global _n_users  # noqa: PLW0603 - BLAS has a global setting, and this counts its users
    with _lock:
        if _n_users == 0:
            _limits.append(threadpool_limits(1, user_api="blas"))
        _n_users += 1
    try:
        yield
    finally:
        with _lock:
            _n_users -= 1
            if _n_users == 0:
                _limits.pop().restore_original_limits()
