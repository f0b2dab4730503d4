"""Run jobs one after the other in a thread, and show their errors to the caller."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """One thread that runs jobs in the order in which they were submitted.

    After a job that fails no other runs, and every method raises.

    Parameters
    ----------
    n_waiting : int
        How many unfinished jobs `submit` accepts before it waits for the oldest.
    """

    def __init__(self, n_waiting: int) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="trajstore-writer")
        self._n_waiting = n_waiting
        self._jobs: deque[Future[None]] = deque()
        self._last: Future[None] | None = None
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], None]) -> Future[None]:
        """Queue a job; waits while too many are unfinished."""
        self.check()
        while len(self._jobs) >= self._n_waiting:
            self._finish_oldest()
        self._last = self._executor.submit(_run_after, self._last, job)
        self._jobs.append(self._last)
        return self._last

    def check(self) -> None:
        """Raise an error if a job has failed; does not wait.

        Raises
        ------
        RuntimeError
            If a job has failed; its error is the cause.
        """
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

    def close(self) -> None:
        """Wait for the jobs and end the thread."""
        self._executor.shutdown()
        self.check()

    def _finish_oldest(self) -> None:
        self._error = self._jobs.popleft().exception() or self._error


def _run_after(previous: Future[None] | None, job: Callable[[], None]) -> None:
    """Run a job unless the one before it failed; pass its error on if it did."""
    if previous is not None:
        previous.result()
    job()
