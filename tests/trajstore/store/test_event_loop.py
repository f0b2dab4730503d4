"""The writer's event loop runs calls for other threads in its own thread."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from trajstore.store.event_loop import EventLoop


@pytest.fixture
def loop():
    loop = EventLoop()
    yield loop
    loop.close()


def test_calls_run_in_the_calling_thread(loop: EventLoop):
    found = loop.run(asyncio.to_thread(threading.current_thread))
    assert found is threading.current_thread()


def test_a_call_takes_no_turn_of_the_loop(loop: EventLoop):
    turns: list[int] = []

    async def run() -> list[int]:
        asyncio.get_running_loop().call_soon(turns.append, 1)
        await asyncio.to_thread(str)
        return turns.copy()

    assert loop.run(run()) == []


def test_errors_of_calls_are_raised(loop: EventLoop):
    with pytest.raises(ValueError, match="invalid literal"):
        loop.run(asyncio.to_thread(int, "one"))
    # The loop still runs.
    assert loop.run(asyncio.to_thread(int, "1")) == 1


def test_an_executor_of_its_own_runs_a_call(loop: EventLoop):
    async def run() -> threading.Thread:
        running = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as executor:
            return await running.run_in_executor(executor, threading.current_thread)

    assert loop.run(run()) is not threading.current_thread()
