"""Stopwatches for functions and for the hooks of a recorder."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from trajstore import Recorder


class Stopwatch:
    """Collects seconds between two calls, or within a function."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def start(self, *_: Any) -> None:
        """Start."""
        self._started = time.perf_counter()

    def stop(self, *_: Any) -> None:
        """Stop."""
        self.seconds.append(time.perf_counter() - self._started)

    def timing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` with every call timed; it may call functions timed by others."""

        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds.append(time.perf_counter() - started)
            return result

        return call


class TimedRecorder(NamedTuple):
    """A recorder with stopwatches around its hooks before and after each step."""

    recorder: Recorder
    before: Stopwatch
    after: Stopwatch


@contextmanager
def timed_recorder(
    path: Path, model: nn.Module, optimizer: Optimizer, **options: Any
) -> Iterator[TimedRecorder]:
    """Yield a recorder whose hooks are timed in every step."""
    before, after = Stopwatch(), Stopwatch()
    all_hooks: Any = optimizer
    pre_hooks, post_hooks = (
        all_hooks._optimizer_step_pre_hooks,
        all_hooks._optimizer_step_post_hooks,
    )
    others = {*pre_hooks, *post_hooks}
    with Recorder(path, model, optimizer, **options) as recorder:
        # The recorder moves its hook behind all others, so none can be placed after it.
        for hooks, stopwatch in ((pre_hooks, before), (post_hooks, after)):
            for key in hooks.keys() - others:
                hooks[key] = stopwatch.timing(hooks[key])
        yield TimedRecorder(recorder, before, after)
