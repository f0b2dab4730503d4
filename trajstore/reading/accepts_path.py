"""Let functions of a run also accept the path of its store."""

import os
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from trajstore.reading.run import Run, open_run

P = ParamSpec("P")
R = TypeVar("R")

RunLike = Run | str | os.PathLike[str]


def accepts_path(
    function: Callable[Concatenate[Run, P], R],
) -> Callable[Concatenate[RunLike, P], R]:
    """Open the run if the first argument of a function is the path or URL of a store."""

    @wraps(function)
    def accepting(run: RunLike, *args: P.args, **kwargs: P.kwargs) -> R:
        return function(as_run(run), *args, **kwargs)

    return accepting  # type: ignore[return-value]


def as_run(run: RunLike) -> Run:
    """Return a run, or open the run at a path."""
    if isinstance(run, (str, os.PathLike)):
        return open_run(run)
    # The attribute itself takes a moment to build.
    if not hasattr(type(run), "steps"):
        raise TypeError(
            f"Expected a run or the path of its store, got {type(run).__name__}. Open the store "
            "with trajstore.open_run(path)."
        )
    return run
