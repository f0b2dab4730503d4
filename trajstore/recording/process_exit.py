"""Close a recording properly when the program ends or receives SIGTERM."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from warnings import warn


def close_at_exit(close: Callable[[str], None]) -> Callable[[], None]:
    """Call `close(status)` when the program ends; return a function that cancels this."""
    at_exit = partial(_close, close)
    atexit.register(at_exit)
    undo_sigterm = _exit_on_sigterm()

    def undo() -> None:
        atexit.unregister(at_exit)
        undo_sigterm()

    return undo


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
