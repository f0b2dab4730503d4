"""Compile loops with Numba, for the kernels of CPUs.

Numba compiles functions when they are first imported, which takes several seconds, and keeps the
result on disk until the file of the function changes. It does not notice changes in other files:
functions that call each other stay in one file.
"""

import logging
import os
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba
from numba import void

from trajstore.tracking.backends.threads import preserve_torch_threads

LOGGER: Final = logging.getLogger("trajstore")

F = TypeVar("F", bound=Callable[..., Any])

_REORDER: Final = frozenset({"reassoc", "contract", "nsz", "arcp"})
"""LLVM flags that permit reordering sums, but leave infinities and NaN valid."""

_OPTIONS: Final = {"nogil": True, "fastmath": set(_REORDER)}


@cache
def _announce() -> None:
    """Log once that kernels are compiled, unless the cache holds compiled kernels."""
    folder = os.environ.get("NUMBA_CACHE_DIR")
    places = Path(folder) if folder else Path(__file__).parent / "__pycache__"
    if not any(places.rglob("cpu_kernels.*.nbi")):
        LOGGER.info("Compiling kernels, once per machine; this takes several seconds.")


def jit(function: F, *signature: Any, **options: Any) -> F:
    """Compile a function for arguments of these types, or when it is called."""
    _announce()
    options = _OPTIONS | options
    try:
        result = numba.njit(*signature, cache=True, **options)(function)
    except RuntimeError:
        # Numba has no cache directory, so every process has to compile the function.
        result = numba.njit(*signature, **options)(function)
    return cast("F", result)


def compiled(*signature: Any) -> Callable[[F], F]:
    """Compile a function on import for arguments of these types."""

    def decorated(function: F) -> F:
        return jit(function, void(*signature))

    return decorated


def compiled_when_called(*signature: Any) -> Callable[[F], F]:
    """Compile a function for arguments of these types when it is first called."""

    # For functions that most recordings do not need.
    def decorated(function: F) -> F:
        @cache
        def compiled_now() -> F:
            return jit(function, void(*signature))

        @wraps(function)
        def call(*arguments: Any) -> Any:
            return compiled_now()(*arguments)

        return cast("F", call)

    return decorated


_IN_THREADS: Final = list[Callable[[], Any]]()  # compile functions that run in threads


def compile_for_threads() -> None:
    """Compile the functions that run in threads."""
    for compiled_now in _IN_THREADS:
        compiled_now()


def compiled_in_threads(*signature: Any) -> Callable[[F], F]:
    """Compile a function, whose loops over `prange` run in threads, when it is needed."""

    # Compiling starts Numba's threads. With GNU OpenMP, processes that are forked later cannot
    # use Numba in threads of their own, so no threads are started where one is enough.
    def decorated(function: F) -> F:
        @cache
        def compiled_now() -> F:
            with preserve_torch_threads():
                return jit(function, void(*signature), parallel=True)

        _IN_THREADS.append(compiled_now)

        @wraps(function)
        def call(*arguments: Any) -> Any:
            return compiled_now()(*arguments)

        return cast("F", call)

    return decorated


def inlined(function: F) -> F:
    """Compile a function as part of the functions that call it."""
    return jit(function)


def loop(function: F) -> F:
    """Compile a loop over few arrays separately from its callers, to have it vectorised."""
    return jit(function, inline="never")
