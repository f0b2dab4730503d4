"""Close a recording properly when the program ends or receives a signal."""

import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import FrameType
from typing import Any, Final
from warnings import warn

LOGGER: Final = logging.getLogger("trajstore")

CLOSING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
"""Signals that wait while a recording is closed."""


def close_at_exit(
    close: Callable[[str], None], location: str
) -> Callable[[], AbstractContextManager[None]]:
    """Call `close(status)` at the end of the program; return a function that makes a context."""
    # In the context the recording at a location can be closed: signals wait in it, and nothing
    # is called at the end of the program after it. SIGTERM ends the program regularly.
    LOGGER.info("Recording to %s.", location)
    at_exit = partial(_close, close)
    atexit.register(at_exit)
    undo_sigterm = _exit_on_sigterm()

    @contextmanager
    def closing() -> Iterator[None]:
        try:
            with signals_wait(location):
                yield
        finally:
            atexit.unregister(at_exit)
            undo_sigterm()
            LOGGER.info("The recording at %s is closed.", location)

    return closing


@contextmanager
def signals_wait(location: str) -> Iterator[None]:
    """Let SIGINT and SIGTERM take effect after the context, in which a recording is closed."""
    # Python runs handlers in the main thread only, so signals do not interrupt other threads.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, waiting = os.getpid(), list[int]()

    def note(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        waiting.append(number)
        LOGGER.warning(
            "Closing the recording %s. The signal takes effect when all rows are written. "
            "To end at once and lose rows that are not committed: kill -9 %d",
            location,
            owner,
        )

    before: dict[int, Any] = {}
    try:
        for number in CLOSING_SIGNALS:
            handler = signal.getsignal(number)
            # Leave ignored signals, and handlers that are not Python functions.
            if handler not in {None, signal.SIG_IGN}:
                before[number] = handler
                signal.signal(number, note)
        yield
    finally:
        for changed, handler in before.items():
            signal.signal(changed, handler)
        for noted in dict.fromkeys(waiting):
            signal.raise_signal(noted)


def _close(close: Callable[[str], None]) -> None:
    try:
        close("failed" if hasattr(sys, "last_value") else "complete")
    except RuntimeError as error:
        warn(str(error), stacklevel=1)


def _exit_on_sigterm() -> Callable[[], None]:
    """Turn SIGTERM into `SystemExit`, so that ``with`` blocks exit; return an undo function."""
    # A handler that the user has set stays. Python can set handlers only in the main thread.
    is_default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not is_default or threading.current_thread() is not threading.main_thread():
        return lambda: None
    handler = partial(_exit, os.getpid())
    signal.signal(signal.SIGTERM, handler)

    def undo() -> None:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGTERM) is handler:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    return undo


def _exit(owner: int, signum: int, _frame: FrameType | None) -> None:
    if os.getpid() != owner:
        # A forked process, such as a DataLoader worker, ends as it would without this handler.
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
    raise SystemExit(128 + signum)
