"""Run coroutines to completion in the calling thread, one after another."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class EventLoop:
    """A private event loop; not thread-safe."""

    # Zarr's own loop needs a new thread, which cannot be started while the interpreter
    # shuts down.
    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=_LoopOfThisThread)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return the result of a coroutine."""
        return self._runner.run(coroutine)

    def close(self) -> None:
        """Close the loop."""
        self._runner.close()


class _LoopOfThisThread(asyncio.SelectorEventLoop):
    """A loop that runs calls for other threads immediately, in its own thread."""

    # The calling thread is the writer thread. Each additional thread would cost time for
    # switching and memory for an allocator arena, and even a result that is there at once would
    # take the loop several turns, during which training waits for Python's lock.
    def run_in_executor(  # type: ignore[override] # of any executor
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        """Run a call now, unless it has an executor of its own."""
        if executor is not None:
            return super().run_in_executor(executor, func, *args)
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - as executors do
            future.set_exception(error)
        return future
