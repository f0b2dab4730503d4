"""Compute the geometry of a run relative to a chosen target, in a thread of its own."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

from dask.callbacks import Callback

from analyzers.geometry.average_of_epochs import read_reference
from analyzers.geometry.stored import result_group, store_geometry
from trajstore.reading.run import Run, open_run
from trajstore.reading.target import AT_STEP, TargetLike, find_target

KINDS = ("epoch", "step", "snapshot", "mean", "run")
"""Kinds of targets that the page offers."""


@dataclass(slots=True)
class GeometryJob:
    """A computation in the background.

    Attributes
    ----------
    run : Run
        The run, as of the moment when the computation was asked for.
    text : str
        Description of the target.
    share : float
        Share of the work that is done, from 0 to 1.
    group : str
        Group of the result next to the run; empty until the job has succeeded.
    error : str
        Reason of a failure; empty without one.
    """

    run: Run
    text: str
    share: float = 0.0
    group: str = ""
    error: str = ""
    thread: Thread = field(init=False)

    def start(self, reference: TargetLike) -> None:
        """Start to compute the geometry relative to a target."""
        self.thread = Thread(target=self._compute, args=(reference,), daemon=True)
        self.thread.start()

    @property
    def is_done(self) -> bool:
        """Whether the job has succeeded or failed."""
        return bool(self.group or self.error)

    def _compute(self, reference: TargetLike) -> None:
        try:
            with _counting(self._advance):
                geometry = store_geometry(self.run, reference=reference)
            self.group = result_group(geometry)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            self.error = str(error.args[0] if isinstance(error, KeyError) else error)

    def _advance(self, share: float) -> None:
        self.share = share


def parse_target(kind: str, value: str, run: Run) -> TargetLike:
    """Return the target that the page asks for.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    value : str
        Number of an epoch, step that starts a window, name of a snapshot, ``3-5`` for the mean
        of epochs 3 to 5, or the path of another run.
    run : Run
        The run.

    Returns
    -------
    TargetLike
        The target, as `analyzers.path_geometry` takes it.

    Raises
    ------
    ValueError
        If the target is not of the form that its kind needs.
    KeyError
        If the run has no such epoch, or no window starts at the step.
    FileNotFoundError
        If there is no run at a path.
    """
    value = value.strip()
    if kind == "epoch" and value.isdecimal():
        return int(value)
    if kind == "step" and value.isdecimal():
        return find_target(run, f"{AT_STEP}{value}")
    if kind == "snapshot" and value in run.snapshots:
        return value
    if kind == "mean" and (match := re.fullmatch(r"(\d+)\s*[-:]\s*(\d+)", value)):
        return read_reference(f"mean:{match[1]}:{match[2]}", run)
    if kind == "run" and value:
        return open_run(value)
    wanted = {
        "epoch": "the number of an epoch, such as 12",
        "step": "a step that starts a window, such as 4500",
        "snapshot": f"the name of a snapshot; the run has {list(run.snapshots)}",
        "mean": "a range of epochs, such as 10-20",
        "run": "the path of another run",
    }
    raise ValueError(
        f"Expected {wanted.get(kind, 'a known kind of target')}, got {value!r}."
    )


def _counting(advance: Callable[[float], None]) -> Any:
    """Return a context that reports the share of Dask tasks that are done."""
    total = [1, 0]

    def start(_graph: Any, state: dict[str, Any]) -> None:
        total[:] = [len(state["waiting"]) + len(state["ready"]), 0]

    def done(*_: Any) -> None:
        total[1] += 1
        advance(min(1.0, total[1] / max(1, total[0])))

    return Callback(start_state=start, posttask=done)  # type: ignore[no-untyped-call]
