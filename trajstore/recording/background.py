"""Run jobs one after the other in a thread, and raise their errors in the caller."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

T = TypeVar("T")


class Background:
    """One thread that runs jobs in the order in which they were submitted.

    After a job that fails no other runs, and every method raises. With `n_waiting`
    unfinished jobs `submit` waits for the oldest.
    """

    def __init__(self, n_waiting: int) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="trajstore-writer")
        self._n_waiting = n_waiting
        self._jobs: deque[Future[None]] = deque()
        self._last: Future[None] | None = None
        self._error: BaseException | None = None
        self._is_closed = False

    def submit(self, job: Callable[[], None]) -> Future[None]:
        """Queue a job; waits while too many are unfinished."""
        self.check()
        while len(self._jobs) >= self._n_waiting:
            self._finish_oldest()
        self._last = self._submit(partial(_run_after, self._last, job))
        self._jobs.append(self._last)
        return self._last

    def call(self, job: Callable[[], T]) -> T:
        """Run a job after those submitted, return its result; its errors stop no others."""
        self.wait()
        return self._submit(job).result()

    def check(self) -> None:
        """Raise an error if a job has failed; does not wait."""
        while self._jobs and self._jobs[0].done():
            self._finish_oldest()
        if self._error is not None:
            raise RuntimeError(
                f"Writing the store failed ({self._error!r}). What was committed before "
                "stays readable; nothing more is recorded."
            ) from self._error

    def wait(self) -> None:
        """Wait until all jobs are done."""
        while self._jobs:
            self._finish_oldest()
        self.check()

    def close(self, last: Callable[[], None] = lambda: None) -> None:
        """Wait for the jobs, run the last one even if others failed, end the thread."""
        try:
            if not self._is_closed:
                self._submit(last).result()
        finally:
            self._is_closed = True
            self._executor.shutdown()
        self.wait()

    def _submit(self, job: Callable[[], T]) -> Future[T]:
        if self._is_closed:
            raise RuntimeError("The thread has ended; it accepts no more jobs.")
        try:
            return self._executor.submit(job)
        except RuntimeError:
            # The interpreter is shutting down: no thread can start, but this one can still work.
            future = Future[T]()
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - as executors do
                future.set_exception(error)
            return future

    def _finish_oldest(self) -> None:
        self._error = self._jobs.popleft().exception() or self._error


def _run_after(previous: Future[None] | None, job: Callable[[], None]) -> None:
    """Run a job unless the previous job failed; raise its error if it did."""
    if previous is not None:
        previous.result()
    job()
