"""Predict the error of gamma mid-run: of a step, and of the mean of an epoch.

The error has two parts. The part that falls with the number of signs is the error of a sketch
without weights or basis, times a ratio that accounts for weights, basis and window length. The
part that remains comes from the estimated distance to the target, and falls with the number of
probes; with SGD the ends of windows tell the distance, and only the rounding of their codes remains. Both grow if the learning rate decays, because the remaining distance then falls by a
larger factor within a window. ``benchmarks/planning.py`` measured all constants.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import hypot, log, sqrt
from statistics import median
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.format.layout import Layout
from trajstore.format.run_spec import PROBES, RunSpec
from trajstore.planning.measured import (
    MEAN_RATIOS,
    MEASURED_RUNS,
    SUM_RATIO,
    MeasuredErrors,
    Optimizer,
)
from trajstore.sketch.sketch import FOLD_VARIANCE, sketch_of

FloatArray = npt.NDArray[np.floating[Any]]

Rate = Literal["constant", "linear", "cosine"]
"""Course of the learning rate; linear and cosine decay to 0."""

REMAINING: Final[Mapping[Rate, Callable[[FloatArray], FloatArray]]] = {
    "constant": lambda s: 1 - s,
    "linear": lambda s: (1 - s) ** 2 / 2,
    "cosine": lambda s: (1 - s - np.sin(np.pi * s) / np.pi) / 2,
}
"""Sum of the learning rates after the fraction s of a run, relative to the first rate."""

POWER: Final = 0.9
"""The distance to the end is about this power of the sum of the remaining learning rates."""

END_ERROR: Final = sqrt(2) * 3.3 / 127 / sqrt(12)
"""Error of the displacement over a window, whose ends are rounded to codes, relative to the
displacement, if one probe told it: the largest of 1024 normal numbers is 3.3, and 127 steps long."""

ROUNDING: Final = 6e-7
"""Error of gamma in a step from the rounding of stored numbers, if nothing else is estimated; 5e-7
to 2.2e-6 in recordings of 201 and 362 parameters (``tests/trajstore/planning/test_tiny_plans.py``)."""

POINTS: Final = 500
"""Number of points of a run at which errors are predicted."""


class ErrorRange(NamedTuple):
    """Expected error: lowest, median and highest over the measured runs."""

    low: float
    typical: float
    high: float


class Recorded(NamedTuple):
    """Root-mean-square errors of gamma in a recorded run, mid-run, and those that plans predict."""

    step: float
    mean: float | None  # of epoch means; None if the run has too few epochs
    planned_step: ErrorRange
    planned_mean: ErrorRange | None

    def scaled(self, planned: ErrorRange, *, mean_of: int) -> ErrorRange:
        """Scale the errors that are planned for a similar run by those of this run."""
        measured, predicted = self.step, self.planned_step
        if mean_of > 1 and self.mean is not None and self.planned_mean is not None:
            measured, predicted = self.mean, self.planned_mean
        pairs = zip(planned, predicted, strict=True)
        return ErrorRange(*sorted(measured * error / own for error, own in pairs))


class Growth(NamedTuple):
    """Root-mean-square growth of errors within windows, mid-run."""

    signs: float  # of the part that falls with the number of signs
    distance: float  # of the part that comes from the distance
    ends: (
        float  # of the part that is left of it if the ends of windows tell the distance
    )


@lru_cache(maxsize=1024)
def growth(rate: Rate, *, n_steps: int, window: float, epoch: float) -> Growth:
    """Return the growth of errors with windows and epochs of given fractions of a run."""
    # The residual is as long as the distance to the end at the window's start; the sketch's
    # error is that length over the current distance. The distance's error is also proportional
    # to the displacement from the straight line between anchors, again over the current
    # distance. That displacement is a random walk from anchor to anchor.
    edge = min(max(epoch, window), 0.25)
    s = edge + (1 - 2 * edge) * (np.arange(POINTS) + 0.5) / POINTS
    s = np.floor(s * n_steps) / n_steps
    start = np.floor(s / window + 1e-9) * window
    stop = np.minimum(start + window, 1)
    now, before, after = (REMAINING[rate](at) for at in (s, start, stop))
    longer = (before / now) ** POWER
    # Each step of the walk is proportional to the learning rate; the mean rate of the window
    # will do.
    mean_rate = (before - after) / (stop - start)
    walk = mean_rate * (before - now).clip(0) * (now - after) / (before - after)
    # The displacement over the whole window, of which the ends lack the rounding of their codes.
    whole = mean_rate * (before - after)
    relative = longer**2 / now ** (2 * POWER)
    return Growth(
        sqrt(float(np.mean(longer**2))),
        sqrt(float(np.mean(relative * walk))),
        END_ERROR * sqrt(float(np.mean(relative * whole))),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedErrors:
    """Errors of gamma that measured runs predict for a planned run."""

    plain: float  # error of a sketch without weights or basis
    basis: int
    probes: int
    n_steps: int
    window: float  # length of a window that is not cut, as a fraction of the run
    epoch: float  # length of an epoch, as a fraction of the run
    rate: Rate
    optimizer: Optimizer | None  # None if unknown, treated as adaptive
    has_sums: bool  # whether the sums of the gradients of windows are known
    has_displacement_sums: bool  # whether those of the displacements are known
    crowding: float = 1.0  # see `probe_crowding`

    def stderr(self, *, mean_of: int = 1) -> ErrorRange:
        """Return the standard error of gamma, averaged over `mean_of` steps of an epoch."""
        errors = [self._stderr(run, mean_of) for run in MEASURED_RUNS.values()]
        return ErrorRange(min(errors), median(errors), max(errors))

    def _stderr(self, measured: MeasuredErrors, mean_of: int) -> float:
        # Measured runs have a constant rate. The largest measured basis is used that has no
        # more vectors than the planned basis, or else the smallest.
        bases = sorted(measured.ratios)
        basis = max([r for r in bases if r <= self.basis], default=bases[0])
        grown = self._grown(self.rate)
        ratio = _interpolated(measured.shares, measured.ratios[basis], self.window)
        ratio *= grown.signs / self._grown("constant").signs
        signs = self.plain * ratio
        share = measured.epoch
        there = growth("constant", n_steps=measured.n_steps, window=share, epoch=share)
        ratios = MEAN_RATIOS[self.optimizer or "adaptive"]
        by_ends = not ratios.distance
        turned = grown.ends if by_ends else grown.distance
        rest = sqrt(PROBES / self.probes) * turned / there.distance
        rest *= measured.from_distance[basis] * sqrt(self.crowding)
        if mean_of > 1:
            # What is known of a window's sum says less about a part of the window.
            known = min(1.0, self.epoch / self.window)
            left = ratios.signs**2
            if by_ends:
                # The sum of a window's updates is as uncertain as its ends.
                ends = ratio * END_ERROR / sqrt(self.probes)
                left = (left * signs**2 + ends**2) / (signs**2 + ends**2)
            left = 1 - known * (1 - left) if self.has_sums else 1.0
            signs *= sqrt(left / mean_of)
            # All steps of a window share the errors of its ends.
            distance = 1.0 if by_ends else ratios.distance
            if self.has_displacement_sums:
                from_sum = SUM_RATIO * self.plain * sqrt(self.probes)
                distance += known * (min(from_sum, distance) - distance)
            rest *= distance
        return hypot(signs, rest, ROUNDING * grown.signs / sqrt(mean_of))

    def _grown(self, rate: Rate) -> Growth:
        return growth(rate, n_steps=self.n_steps, window=self.window, epoch=self.epoch)


def plain_error(spec: RunSpec, layout: Layout) -> float:
    """Return the standard error of gamma from a sketch without weights or basis."""
    # Of two elements in a bucket, one of the gradient multiplies one of the other vector. The last
    # row of the fold may fill a part of the buckets only.
    sketch = sketch_of(spec, layout)
    fold, size = sketch.fold, sketch.size
    full = fold.n_rows - 1
    in_last = size - full * fold.width
    pairs = full * (full - 1) * fold.width + 2 * full * in_last
    return sqrt(FOLD_VARIANCE * pairs / size**2 + sketch.code_variance)


def probe_crowding(n_params: int, probes: int) -> float:
    """Return the variance of products from probes, relative to that of many parameters a probe."""
    # Pairs of parameters that share a probe, as in `plain_error`. With a probe for every parameter
    # there are none.
    full, in_last = divmod(n_params, probes)
    pairs = full * (full - 1) * probes + 2 * full * in_last
    return pairs * probes / n_params**2


def _interpolated(
    shares: tuple[float, ...], ratios: tuple[float, ...], share: float
) -> float:
    """Interpolate in log(share), constant outside the measured range."""
    return float(np.interp(log(share), np.log(shares), ratios))
