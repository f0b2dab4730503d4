"""Errors of gamma in a run if its sketch or its probes had other sizes.

``traj-store plan --like`` calls `OtherErrors` by its name, so that trajstore needs no analyses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, NamedTuple

import dask.base
import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.geometry import COVARIANCE
from analyzers._engine.at_target import step_of_target
from analyzers._engine.combine import combine
from analyzers._engine.measured_window import needed_windows, residual_sq
from analyzers._engine.other_options import OtherOptions
from analyzers._engine.rules import parts_of
from analyzers._engine.tables import sketch_weights
from analyzers._engine.tasks import projection_tasks
from analyzers._engine.vectors.walk import window_steps
from analyzers._execution.progress import task_progress
from trajstore.format.run_spec import RunSpec
from trajstore.planning.similar import OF_SKETCH, RecordedErrors
from trajstore.reading.run import Run
from trajstore.reading.target import find_target

FloatArray = npt.NDArray[np.floating[Any]]
Quantities = dict[str, FloatArray]

MOST_STEPS: Final = 4096
"""Number of steps that are analysed, at most; of longer runs, these are spread evenly."""

RANGES: Final = 16
"""Number of ranges in which the steps of a long run lie."""


class Range(NamedTuple):
    """Consecutive steps that are analysed, and what the first pass of the analysis found."""

    steps: slice
    chunk: slice  # these steps, and others that they depend on
    projected: Sequence[Any]  # results of `project`


@dataclass(frozen=True, slots=False)
class OtherErrors:
    """Errors of gamma in recordings of the same training run with other options."""

    run: Run
    _found: dict[RunSpec, list[Quantities]] = field(default_factory=dict)

    def of(self, spec: RunSpec) -> RecordedErrors:
        """Return the errors with the sketch and the probes of a spec, in the windows of the run."""
        every = self.run.spec.steps_per_epoch
        squares, means = [], []
        for (steps, *_), values in zip(self._ranges, self._values(spec), strict=True):
            squares.append(values["gamma_stderr"] ** 2)
            if every is not None and (steps.stop - steps.start) % every == 0:
                by_epoch = values[f"gamma{COVARIANCE}"].reshape(-1, every)
                means.append(by_epoch.sum(1) / every**2)
        mean = _rms(np.concatenate(means)) if means else None
        return RecordedErrors(_rms(np.concatenate(squares)), mean)

    @cached_property
    def doubled(self) -> float:
        """Variance of products in windows of twice the length, relative to that of the run."""
        # The second half of a longer window has the residual of the window before.
        total = longer = 0.0
        for (steps, chunk, projected), values in zip(
            self._ranges, self._values(self.run.spec), strict=True
        ):
            fits = {c: found.fit for c, found in projected[0].items()}
            squares = (values["lolr_stderr"] * values["eb"]) ** 2
            for c, part in window_steps(self.run, chunk).items():
                first, last = max(part.start, steps.start), min(part.stop, steps.stop)
                inside = squares[first - steps.start : last - steps.start]
                if first >= last or c - 1 not in fits or not np.isfinite(inside).all():
                    continue
                weights = sketch_weights(self.run, c)
                before, own = (
                    (residual_sq(fits[i]) / weights**2).sum() for i in (c - 1, c)
                )
                if own > 0:
                    total += inside.sum()
                    longer += inside.sum() * (1 + before / own) / 2
        return float(longer / total) if total > 0 else 1.0

    @cached_property
    def _ranges(self) -> list[Range]:
        run, steps = self.run, analysed_steps(self.run)
        needed = [list(needed_windows(run, part).values()) for part in steps]
        chunks = [slice(windows[0].start, windows[-1].stop) for windows in needed]
        target, parts = find_target(run, "final"), parts_of(run, layers=False)
        tasks = projection_tasks(run, target, chunks, parts)
        with task_progress("analysing"):
            found = dask.base.compute(*tasks)  # type: ignore[no-untyped-call]
        return [Range(*both) for both in zip(steps, chunks, found, strict=True)]

    def _values(self, spec: RunSpec) -> list[Quantities]:
        """Return the geometry of every range with the errors of a spec."""
        run = self.run
        options = {name: getattr(spec, name) for name in OF_SKETCH}
        spec = replace(run.spec, **options)
        if spec not in self._found:
            at = step_of_target(run, find_target(run, "final"))
            self._found[spec] = [
                combine(
                    run,
                    steps,
                    [chunk],
                    [projected],
                    parts=parts_of(run, layers=False),
                    weight_decay=0.0,
                    target_step=at,
                    other=OtherOptions(run=run, spec=spec),
                )
                for steps, chunk, projected in self._ranges
            ]
        return self._found[spec]


def analysed_steps(run: Run) -> list[slice]:
    """Return the steps of the middle of a run, or ranges that are spread evenly over them."""
    # The middle lacks the first and the last epoch, or window of a run without epochs.
    n, every = run.n_steps, run.spec.steps_per_epoch
    if every is None or n < 3 * every:
        lengths = run.windows.variables["stop"].values
        lengths = lengths - run.windows.variables["start"].values
        edge, unit = min(every or int(lengths.max()), n // 4), 1
        middle = slice(edge, n - edge)
    else:
        unit, middle = every, slice(every, n // every * every - every)
    length = middle.stop - middle.start
    if length <= MOST_STEPS:
        return [middle]
    part = max(unit, MOST_STEPS // RANGES // unit * unit)
    firsts = np.linspace(0, length - part, max(1, MOST_STEPS // part))
    starts = middle.start + firsts.astype(np.int64) // unit * unit
    return [slice(int(start), int(start) + part) for start in starts]


def _rms(variances: FloatArray) -> float:
    """Return the root of the mean of the variances that are known, 0 without any."""
    known = variances[np.isfinite(variances)]
    return float(np.sqrt(np.maximum(known.mean(), 0))) if len(known) else 0.0
