"""Run coroutines to their end in the calling thread, one after the other."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class EventLoop:
    """An event loop of one's own; not thread-safe.

    It works where the usual way does not: in a thread beside a running loop, and while
    the interpreter ends, when no thread can be started any more.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return the result of a coroutine."""
        loop = self._runner.get_loop()
        loop.set_default_executor(_ThisThread())
        return self._runner.run(coroutine)

    def close(self) -> None:
        """End the loop; it must not be used again."""
        self._runner.close()


class _ThisThread(ThreadPoolExecutor):
    """Runs what is handed to threads in the calling one.

    It is the writer's own thread already. Switching between more costs time, and each
    has memory of its own that the allocator does not give back.
    """

    def submit(self, call: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call now."""
        future = Future[Any]()
        try:
            future.set_result(call(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - as executors do
            future.set_exception(error)
        return future
