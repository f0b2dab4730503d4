"""Run jobs one after the other in a thread, and raise their errors in the caller."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

T = TypeVar("T")


class Background:
    """Run jobs in one thread, in the order in which they were submitted.

    After a job has failed, no queued job runs, and every method raises an error. While
    `n_waiting` jobs are unfinished, `submit` waits for the oldest of them.
    """

    def __init__(self, n_waiting: int) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="trajstore-writer")
        self._n_waiting = n_waiting
        self._jobs: deque[Future[None]] = deque()
        self._last_job: Future[None] | None = None
        self._error: BaseException | None = None
        self._is_closed = False

    def submit(self, job: Callable[[], None]) -> Future[None]:
        """Queue a job as soon as fewer than `n_waiting` jobs are unfinished."""
        self.check()
        while len(self._jobs) >= self._n_waiting:
            self._finish_oldest()
        self._last_job = self._submit(partial(_run_after, self._last_job, job))
        self._jobs.append(self._last_job)
        return self._last_job

    @property
    def is_idle(self) -> bool:
        """Whether all jobs are done."""
        return not self._jobs or self._jobs[-1].done()

    def call(self, job: Callable[[], T]) -> T:
        """Wait for the queued jobs, then run a job and return its result."""
        # If this job fails, later jobs still run.
        self.wait()
        return self._submit(job).result()

    def check(self) -> None:
        """Raise an error if a finished job has failed; do not wait for unfinished jobs."""
        while self._jobs and self._jobs[0].done():
            self._finish_oldest()
        if self._error is not None:
            raise RuntimeError(
                f"Writing the store failed ({self._error!r}). Everything that was "
                "committed earlier stays readable; nothing more is recorded."
            ) from self._error

    def wait(self) -> None:
        """Wait until all jobs are done; raise an error if a job has failed."""
        while self._jobs:
            self._finish_oldest()
        self.check()

    def close(self, final_job: Callable[[], None] = lambda: None) -> None:
        """Wait for the jobs, run `final_job` even if a job has failed, and end the thread."""
        try:
            if not self._is_closed:
                self._submit(final_job).result()
        finally:
            self._is_closed = True
            self._executor.shutdown()
        self.wait()

    def _submit(self, job: Callable[[], T]) -> Future[T]:
        if self._is_closed:
            raise RuntimeError("The writer thread has ended; it accepts no more jobs.")
        try:
            return self._executor.submit(job)
        except RuntimeError:
            # The interpreter is shutting down and cannot start a thread, so use this thread.
            future = Future[T]()
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - executors do the same
                future.set_exception(error)
            return future

    def _finish_oldest(self) -> None:
        self._error = self._jobs.popleft().exception() or self._error


def _run_after(previous: Future[None] | None, job: Callable[[], None]) -> None:
    """Run a job, or raise the error of the previous job if that job failed."""
    if previous is not None:
        previous.result()
    job()
