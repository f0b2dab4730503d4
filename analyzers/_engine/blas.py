"""One BLAS thread for each of Dask's: more would wait for each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from threadpoolctl import threadpool_limits

_lock = Lock()
_limits: list[threadpool_limits] = []
_n_inside = 0


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let BLAS use one thread in this process, until the last who asked for it is done.

    The limit is the process's, while tasks come and go in many threads.
    """
    global _n_inside  # noqa: PLW0603 - BLAS has a global setting, and this counts its users
    with _lock:
        if _n_inside == 0:
            _limits.append(threadpool_limits(1, user_api="blas"))
        _n_inside += 1
    try:
        yield
    finally:
        with _lock:
            _n_inside -= 1
            if _n_inside == 0:
                _limits.pop().restore_original_limits()
