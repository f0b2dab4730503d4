"""Run coroutines to completion in the calling thread, one after another."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class EventLoop:
    """A private event loop; not thread-safe."""

    # Zarr's own loop needs a new thread, which cannot be started while the interpreter
    # shuts down.
    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return the result of a coroutine."""
        loop = self._runner.get_loop()
        loop.set_default_executor(_ThisThread())
        return self._runner.run(coroutine)

    def close(self) -> None:
        """Close the loop."""
        self._runner.close()


class _ThisThread(ThreadPoolExecutor):
    """An executor that runs calls in the calling thread."""

    # The calling thread is the writer thread. Each additional thread would cost time for
    # switching and memory for an allocator arena.
    def submit(self, call: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call immediately."""
        future = Future[Any]()
        try:
            future.set_result(call(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - as executors do
            future.set_exception(error)
        return future
