"""Readings of a run that is being recorded: one row of numbers for every committed step."""

import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analyzers._engine.tasks import NAMES
from analyzers.geometry.path_geometry import compute_steps
from trajstore.format.attrs import training_settings
from trajstore.reading.run import Run, open_run
from trajstore.reading.target import Target
from trajstore.store.location import is_remote

Floats = npt.NDArray[np.float64]

SCALARS: Final = ("loss", "lr", "wall_time", "grad_norm", "update_norm", "param_norm")

COLUMNS: Final = (*SCALARS, "ratio", "cosine", "travelled", "lolr", "lolr_stderr")
"""Columns of the readings; NaN where a run does not have the value."""

MAX_TABLE_ROWS: Final = 20_000
"""Number of steps before the first reading whose tables are read too."""

MAX_TARGET_STEPS: Final = 2_000
"""Largest number of steps of a window to measure against the anchor at its end."""

RATE_STEPS: Final = 200
"""Number of last steps from which the speed of the run is taken."""

SIZE_SECONDS: Final = 10.0
"""Seconds between two looks at the size of the store."""


class Readings:
    """Everything read so far from a run that grows; `update` reads what is new.

    Attributes
    ----------
    run : Run
        The run as of the last reading.
    columns : dict from str to numpy.ndarray
        Float64 arrays (step,) by name, as in `COLUMNS`.
    size, free : float
        Bytes of the store and free bytes on its disk; NaN in object storage.
    changed : float
        Time of the last reading that found new steps, `time.monotonic`.
    """

    def __init__(self, location: str) -> None:
        self.run = open_run(location)
        self.columns: dict[str, Floats] = {name: np.empty(0) for name in COLUMNS}
        self.size = self.free = float("nan")
        self.changed = time.monotonic()
        self._identity = self._identify()
        self._measured = 0  # windows measured against the anchor at their end
        self._looked = -SIZE_SECONDS
        self._first_table = max(0, self.run.n_steps - MAX_TABLE_ROWS)

    @property
    def n_steps(self) -> int:
        """Number of steps read."""
        return len(self.columns["lr"])

    def update(self) -> bool:
        """Read what has been committed since, and return whether there was anything."""
        self.run = open_run(self.run.location)
        if self._identify() != self._identity or self.run.n_steps < self.n_steps:
            # The run was resumed from a checkpoint, or replaced by another one.
            self._identity, self._measured = self._identify(), 0
            self.columns = {name: np.empty(0) for name in COLUMNS}
        self._look_at_disk()
        rows = slice(self.n_steps, self.run.n_steps)
        if rows.start == rows.stop:
            return False
        self.changed = time.monotonic()
        new = self._read(rows)
        self.columns = {
            name: np.concatenate([values, new[name]])
            for name, values in self.columns.items()
        }
        lengths = np.nan_to_num(self.columns["update_norm"])
        self.columns["travelled"] = np.cumsum(lengths)
        return True

    def measure_windows(self) -> bool:
        """Measure loLR of the next complete window, relative to the anchor at its end."""
        # Later anchors are better targets, but each window is measured once.
        run, c = self.run, self._measured
        starts = run.stored.starts
        if c + 1 >= len(starts) or int(starts[c + 1]) > self.n_steps:
            return False
        self._measured += 1
        stop = int(starts[c + 1])
        steps = slice(max(int(starts[c]), stop - MAX_TARGET_STEPS), stop)
        if steps.start >= steps.stop:
            return True
        target = Target(
            label=f"anchor {c + 1}",
            note=f"the anchor before step {stop}",
            identity=f"anchor {c + 1}",
            read=partial(_read_anchor, run, c + 1),
        )
        values = compute_steps(run, target, steps, layers=False, weight_decay=0.0)
        for name in ("lolr", "lolr_stderr"):
            self.columns[name][steps] = values[NAMES.index(name)]
        return True

    def skip_windows(self) -> None:
        """Leave out the windows before the last one that is complete."""
        starts = self.run.stored.starts
        self._measured = max(self._measured, len(starts) - 3, 0)

    def facts(self) -> dict[str, float | str]:
        """Return the numbers above the figures: progress, speed, bytes, time left."""
        n, total = self.n_steps, expected_steps(self.run)
        speed = self._speed()
        left = (total - n) / speed if total and speed > 0 else float("nan")
        epoch = int(self.run.stored.epochs[-1]) if n else 0
        return {
            "status": self.run.status,
            "step": float(n),
            "total": float(total or 0),
            "epoch": float(epoch),
            "speed": speed,
            "left": max(0.0, left) if self.run.status == "running" else 0.0,
            "bytes": self.size,
            "free": self.free,
            "travelled": float(self.columns["travelled"][-1]) if n else 0.0,
            "silent": time.monotonic() - self.changed,
        }

    def _identify(self) -> tuple[object, ...]:
        document = self.run.stored.document
        return document.created, len(document.resumes)

    def _read(self, rows: slice) -> dict[str, Floats]:
        steps = self.run.steps.isel(step=rows)
        n = rows.stop - rows.start
        new: dict[str, Floats] = {name: np.full(n, np.nan) for name in COLUMNS}
        for name in SCALARS:
            if name in steps:
                new[name] = steps[name].values.astype(float)
        with np.errstate(divide="ignore", invalid="ignore"):
            new["ratio"] = new["update_norm"] / new["param_norm"]
        first = max(rows.start, self._first_table)
        if first < rows.stop:
            table = self.run.steps["grad_dot_previous"]
            products = table.isel(step=slice(first, rows.stop)).values.sum(
                1, dtype=float
            )
            norms = np.concatenate([self.columns["grad_norm"], new["grad_norm"]])
            before = (
                norms[first - 1 : rows.stop - 1] if first else norms[: rows.stop - 1]
            )
            if not first:
                before = np.concatenate([[np.nan], before])
            with np.errstate(divide="ignore", invalid="ignore"):
                cosine = products / (norms[first : rows.stop] * before)
            new["cosine"][first - rows.start :] = cosine
        return new

    def _speed(self) -> float:
        """Return the number of steps in a second, over the last steps."""
        times = self.columns["wall_time"][-RATE_STEPS:]
        known = times[np.isfinite(times)]
        elapsed = known[-1] - known[0] if len(known) > 1 else 0.0
        return float((len(known) - 1) / elapsed) if elapsed > 0 else float("nan")

    def _look_at_disk(self) -> None:
        if time.monotonic() - self._looked < SIZE_SECONDS:
            return
        self._looked = time.monotonic()
        if is_remote(self.run.location):
            return
        folder = Path(self.run.location)
        self.size = float(sum(_size(path) for path in folder.rglob("*")))
        self.free = float(shutil.disk_usage(folder).free)


def expected_steps(run: Run) -> int | None:
    """Return the number of steps that a run will have; None if nothing tells it."""
    if run.spec.total_steps:
        return run.spec.total_steps
    epochs = training_settings(run.attrs).get("epochs")
    if isinstance(epochs, int) and run.spec.steps_per_epoch:
        return epochs * run.spec.steps_per_epoch
    return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # A commit has removed the file.
        return 0


def _read_anchor(run: Run, window: int, elements: slice) -> Any:
    return run.stored.anchors.decode(window, elements)
