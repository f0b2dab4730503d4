"""End a training that is told to end the way an exception ends it."""

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType


def exit_on_sigterm() -> Callable[[], None]:
    """Turn SIGTERM into `SystemExit`, which leaves ``with`` blocks in order.

    A handler of the user's is left alone; so are threads other than the main one, in
    which Python takes no signals.

    Returns
    -------
    callable
        Takes the change back.
    """
    is_free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not is_free or threading.current_thread() is not threading.main_thread():
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
        # A forked process, such as a worker of a DataLoader: as if nothing was changed.
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
    raise SystemExit(128 + signum)
