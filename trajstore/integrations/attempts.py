"""Keep errors of a recording away from training, and give every training run its own store."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast
from warnings import warn

from torch.optim import Optimizer

from trajstore.integrations.participation import any_divided
from trajstore.reading.run import open_run
from trajstore.store.location import locate

Method = TypeVar("Method", bound=Callable[..., None])


def tolerant(method: Method) -> Method:
    """Turn errors of a callback's method into a warning, unless the user wants them raised."""
    # The callback has the methods `_raises` and `_release`, which returns the open recorder.

    @wraps(method)
    def tolerated(callback: Any, *args: Any, **kwargs: Any) -> None:
        try:
            method(callback, *args, **kwargs)
        except Exception as error:
            if callback._raises():
                raise
            recorder = callback._release()
            warn_of(error)
            if recorder is not None:
                with suppress(Exception):
                    recorder.__exit__(type(error), error, error.__traceback__)

    return cast("Method", tolerated)


def warn_of(error: Exception) -> None:
    """Warn that training continues without being recorded."""
    # str() quotes the text of a KeyError.
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    warn(
        f"Recording has ended: {text} Training continues, and is not recorded. To raise "
        "such errors instead, give on_error='raise'.",
        stacklevel=3,
    )


def default_on_error(
    options: Mapping[str, Any], optimizers: Sequence[Optimizer]
) -> dict[str, Any]:
    """Return options with ``on_error="warn"`` by default; sharded recordings always raise."""
    return {"on_error": "raise" if any_divided(optimizers) else "warn", **options}


def numbered(path: str | Path, attempt: int) -> str:
    """Return the path of the store of an attempt: ``run.zarr``, ``run-2.zarr`` and so on."""
    location = locate(path)
    if attempt == 1:
        return location
    stem = location.removesuffix(".zarr")
    return f"{stem}-{attempt}{location.removeprefix(stem)}"


def attempt_of(path: str | Path, state: Mapping[str, Any]) -> int:
    """Return which attempt at `path` a state belongs to; 1 if none of them has this state."""
    attempt = 1
    with suppress(OSError, ValueError, KeyError):
        while created_at(numbered(path, attempt)) != state.get("created"):
            attempt += 1
        return attempt
    return 1


def created_at(path: str) -> str:
    """Return when a store was created, the name of its recording in states."""
    created: str = open_run(path).stored.document.created
    return created
