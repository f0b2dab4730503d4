"""Jobs run in order, one at a time, and their errors are raised in the caller."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import pytest

from trajstore.recording.background import Background


class Gate:
    """A job that waits until it is opened."""

    def __init__(self) -> None:
        self.started, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.started.set()
        assert self.opened.wait(10)


@pytest.fixture
def background() -> Iterator[Background]:
    background = Background(2)
    yield background
    with suppress(RuntimeError):
        background.close()


def fail() -> None:
    raise OSError("disk full")


def succeed() -> None:
    pass


FAILED = r"Writing the store failed \(OSError\('disk full'\)\).*stays readable"

METHODS: dict[str, Callable[[Background], object]] = {
    "submit": lambda background: background.submit(succeed),
    "check": Background.check,
    "wait": Background.wait,
    "close": Background.close,
}


def test_jobs_run_in_the_order_of_their_submission(background: Background):
    order: list[int] = []
    for i in range(50):
        background.submit(partial(order.append, i))
    background.wait()
    assert order == list(range(50))


def test_jobs_run_in_one_thread_that_is_not_the_callers():
    background, gate, threads = Background(8), Gate(), list[threading.Thread]()
    # If there were a second thread, it would run the jobs that wait.
    background.submit(gate)
    for _ in range(5):
        background.submit(lambda: threads.append(threading.current_thread()))
    gate.opened.set()
    background.close()
    assert len(threads) == 5
    assert len(set(threads)) == 1
    assert threading.current_thread() not in threads


def test_submitting_waits_while_too_many_jobs_are_unfinished(background: Background):
    gate, third_is_in = Gate(), threading.Event()

    def submit_three() -> None:
        background.submit(gate)
        background.submit(succeed)
        background.submit(succeed)
        third_is_in.set()

    submitting = threading.Thread(target=submit_three)
    submitting.start()
    assert gate.started.wait(10)
    assert not third_is_in.wait(0.1)
    gate.opened.set()
    assert third_is_in.wait(10)
    submitting.join()


def test_submitting_does_not_wait_for_fewer_jobs(background: Background):
    gate = Gate()
    first = background.submit(gate)
    second = background.submit(succeed)
    background.check()
    assert not first.done()
    gate.opened.set()
    background.wait()
    assert first.done()
    assert second.done()


def test_waiting_returns_when_all_jobs_are_done(background: Background):
    gate, done = Gate(), list[str]()
    background.submit(gate)
    background.submit(lambda: done.append("last"))
    timer = threading.Timer(0.1, gate.opened.set)
    timer.start()
    background.wait()
    assert done == ["last"]
    timer.join()


def test_it_is_idle_when_all_jobs_are_done(background: Background):
    gate, idle = Gate(), [background.is_idle]
    background.submit(gate)
    background.submit(succeed)
    idle.append(background.is_idle)
    gate.opened.set()
    background.wait()
    idle.append(background.is_idle)
    assert idle == [True, False, True]


def test_closing_runs_the_jobs_that_wait_and_ends_the_thread():
    background, threads = Background(2), list[threading.Thread]()
    background.submit(lambda: threads.append(threading.current_thread()))
    background.close()
    (thread,) = threads
    assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="thread has ended"):
        background.submit(succeed)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_error_of_a_job_is_raised_by_every_method(
    background: Background, method: Callable[[Background], object]
):
    failed = background.submit(fail)
    assert isinstance(failed.exception(), OSError)
    for _ in range(2):  # not only once
        with pytest.raises(RuntimeError, match=FAILED) as error:
            method(background)
        assert isinstance(error.value.__cause__, OSError)


def test_checking_does_not_wait_for_a_job_that_will_fail(background: Background):
    gate = Gate()

    def fail_later() -> None:
        gate()
        fail()

    background.submit(fail_later)
    background.check()
    gate.opened.set()
    with pytest.raises(RuntimeError, match=FAILED):
        background.wait()


def test_no_job_runs_after_one_has_failed(background: Background):
    gate, ran = Gate(), list[str]()

    def fail_later() -> None:
        gate()
        fail()

    background.submit(fail_later)
    second = background.submit(lambda: ran.append("second"))
    gate.opened.set()
    assert isinstance(second.exception(), OSError)
    with pytest.raises(RuntimeError, match=FAILED):
        background.submit(lambda: ran.append("third"))
    with pytest.raises(RuntimeError, match=FAILED):
        background.close()
    assert ran == []


def test_only_the_first_error_is_reported(background: Background):
    gate = Gate()

    def fail_later() -> None:
        gate()
        fail()

    def fail_differently() -> None:
        raise ValueError("another")

    background.submit(fail_later)
    background.submit(fail_differently)
    gate.opened.set()
    with pytest.raises(RuntimeError, match=FAILED):
        background.close()
