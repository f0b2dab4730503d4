"""Compile loops with Numba, for the kernels of CPUs.

Numba compiles a function when `backend` is first imported, and keeps the result on disk until a
file of this package changes. How long that takes depends on how much code it is given: kernels
view parts of arrays with `views`, allocate no memory, and contain the functions that they call.
"""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from hashlib import sha256
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any, Final, TypeVar, cast

import numba
from llvmlite import ir
from numba import int64, prange, void
from numba.core import config, event
from numba.extending import intrinsic

from trajstore.tracking.backends.threads import preserve_torch_threads

LOGGER: Final = logging.getLogger("trajstore")

NUMBA_LOCK: Final = Lock()
"""Held while kernels run in Numba's threads; not all threading layers allow two callers."""

F = TypeVar("F", bound=Callable[..., Any])

_REORDER: Final = frozenset({"reassoc", "contract", "nsz", "arcp"})
"""LLVM flags that permit reordering sums, but leave infinities and NaN valid."""

_OPTIONS: Final = {
    "nogil": True,
    "fastmath": set(_REORDER),
    # Divisions by 0 do not raise errors.
    "error_model": "numpy",
    # Functions are not called from C, and allocate no memory.
    "no_cfunc_wrapper": True,
    "_nrt": False,
}


class Announcer(event.Listener):  # type: ignore[misc] # Numba has no types
    """Logs that kernels are compiled, when the first of them is not in the cache."""

    def __init__(self) -> None:
        self._started: float | None = None

    def on_start(self, event: event.Event) -> None:  # noqa: ARG002 - Numba's interface
        """Log the first compilation."""
        if self._started is None:
            self._started = perf_counter()
            LOGGER.info("Compiling kernels, which takes a few seconds.")

    def on_end(self, event: event.Event) -> None:
        """Ignore the end of one function."""

    def finish(self) -> None:
        """Log how long the functions took that were compiled since the last call."""
        if self._started is not None:
            seconds = perf_counter() - self._started
            LOGGER.info("Kernels are compiled after %.1f seconds.", seconds)
            self._started = None


ANNOUNCER: Final = Announcer()


@cache
def _sources() -> str:
    """Return a hash of the files of this package."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


_WAITING: Final[list[tuple[Any, Any]]] = []
"""Kernels, and their signatures, that `compile_waiting` compiles."""


def jit(function: F, *signature: Any, **options: Any) -> F:
    """Compile a function for arguments of these types, or when it is called."""
    dispatcher = _with_cache(function, **options)
    if signature and not config.DISABLE_JIT:
        _compile((dispatcher, *signature))
    return cast("F", dispatcher)


def _with_cache(function: F, **options: Any) -> Any:
    """Return a function that will be compiled, and whose result is kept on disk."""
    options = _OPTIONS | options
    dispatcher = numba.njit(**options)(function)
    if config.DISABLE_JIT:
        return function
    try:
        dispatcher.enable_caching()
    except RuntimeError:
        _warn_of_missing_cache()
    else:
        # Numba compares the file of the function only.
        index = dispatcher._cache._cache_file
        index._source_stamp = index._source_stamp, _sources()
    return dispatcher


def _compile(*kernels: tuple[Any, Any]) -> None:
    """Compile functions for arguments of the given types only."""
    with event.install_listener("numba:compile", ANNOUNCER), _no_collections():
        for dispatcher, signature in kernels:
            dispatcher.compile(signature)
            dispatcher.disable_compile()


def compile_waiting() -> None:
    """Compile the kernels that have been defined since the last call."""
    kernels, _WAITING[:] = [*_WAITING], []
    # One by one, each would be followed by a search for garbage.
    _compile(*kernels)
    ANNOUNCER.finish()


def _compiled_later(function: F, signature: Any, **options: Any) -> F:
    """Have `compile_waiting` compile a function."""
    dispatcher = _with_cache(function, **options)
    if not config.DISABLE_JIT:
        _WAITING.append((dispatcher, signature))
    return cast("F", dispatcher)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Leave garbage until later; looking for it would take a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@cache
def _warn_of_missing_cache() -> None:
    LOGGER.warning(
        "Numba cannot write compiled kernels to any folder, so every process that records "
        "compiles them again, which takes seconds. Set NUMBA_CACHE_DIR to a writable folder."
    )


def compiled(*signature: Any) -> Callable[[F], F]:
    """Compile a function for arguments of these types in `compile_waiting`."""

    def decorated(function: F) -> F:
        return _compiled_later(function, void(*signature))

    return decorated


def compiled_when_called(*signature: Any) -> Callable[[F], F]:
    """Compile a function for arguments of these types when it is first called."""

    # For functions that most recordings do not need.
    def decorated(function: F) -> F:
        @cache
        def compiled_now() -> F:
            result = jit(function, void(*signature))
            ANNOUNCER.finish()
            return result

        @wraps(function)
        def call(*arguments: Any) -> Any:
            return compiled_now()(*arguments)

        cast("Any", call).compiled_now = compiled_now
        return cast("F", call)

    return decorated


def now(function: F) -> F:
    """Compile a function that is `compiled_when_called`, so that calls go to it directly."""
    return cast("F", cast("Any", function).compiled_now())


def compiled_for_parts(function: F) -> F:
    """Compile a function of a part and the address of its arguments, for `run_in_threads`."""
    return _compiled_later(function, void(int64, int64), no_cfunc_wrapper=False)


def compiled_for_parts_when_needed(function: F) -> Callable[[], F]:
    """Return a function that returns `compiled_for_parts(function)`, compiled when it is called."""

    # For kernels that most recordings do not need.
    @cache
    def kernel() -> F:
        dispatcher = _with_cache(function, no_cfunc_wrapper=False)
        if not config.DISABLE_JIT:
            _compile((dispatcher, void(int64, int64)))
            ANNOUNCER.finish()
        return cast("F", dispatcher)

    return kernel


def _call_at(_context: Any, _function: Any, _part: Any, _arguments: Any) -> Any:
    """Call the compiled function at an address."""

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        address, *rest = arguments
        function = ir.FunctionType(ir.VoidType(), [value.type for value in rest])
        builder.call(builder.inttoptr(address, function.as_pointer()), rest)
        return context.get_dummy_value()

    return void(int64, int64, int64), generate_code


_call: Final = intrinsic(_call_at)


def _run_parts(function: int, n_parts: int, arguments: int) -> None:
    """Call the function at an address for all parts, each in a thread of its own."""
    for part in prange(n_parts):
        _call(function, part, arguments)


@cache
def _compiled_run_parts() -> Callable[[int, int, int], None]:
    """Compile `_run_parts` and start Numba's threads."""
    # With GNU OpenMP, processes that are forked later cannot use Numba in threads of their own,
    # so no threads are started where one is enough.
    with preserve_torch_threads():
        run = jit(_run_parts, void(int64, int64, int64), parallel=True)
    ANNOUNCER.finish()
    return run


def run_in_threads(function: Callable[..., Any], n_parts: int, arguments: int) -> None:
    """Call a function that was `compiled_for_parts`, each part in a thread of its own."""
    _compiled_run_parts()(_address_of(function), n_parts, arguments)


@cache
def _address_of(function: Any) -> int:
    """Return the address of a function that was `compiled_for_parts`, for C."""
    (compiled,) = function.overloads.values()
    name = compiled.fndesc.llvm_cfunc_wrapper_name
    return int(compiled.library.get_pointer_to_function(name))


def on_threads(n_threads: int, kernel: Any) -> Callable[[int], None]:
    """Return a function that runs a kernel on the only part, or on all parts in threads."""
    if n_threads == 1:
        return partial(kernel, 0)

    def run(arguments: int) -> None:
        with NUMBA_LOCK:
            n_before = numba.get_num_threads()
            numba.set_num_threads(min(n_threads, n_before))
            try:
                run_in_threads(kernel, n_threads, arguments)
            finally:
                numba.set_num_threads(n_before)

    return run


def inlined(function: F) -> F:
    """Compile a function as part of the functions that call it."""
    return cast("F", numba.njit(inline="always", **_OPTIONS)(function))


def loop(function: F) -> F:
    """Compile a loop separately from its callers, if it has several."""
    # Only compiled functions call it; they keep it in their caches.
    return cast("F", numba.njit(no_cpython_wrapper=True, **_OPTIONS)(function))


def standalone(function: F) -> F:
    """Compile a loop or an inlined function so that Python can call it, for tests."""
    return jit(cast("F", cast("Any", function).py_func))
