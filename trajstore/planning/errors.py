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
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.format.layout import Layout
from trajstore.format.run_spec import PROBES, RunSpec
from trajstore.planning.measured import (
    BASIS_RATIOS,
    MEASURED_RUNS,
    SUM_RATIO,
    WINDOW_SLOPE,
    Optimizer,
)
from trajstore.planning.parts import PARTS, Parts
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


N_MEASURED: Final = len({*MEASURED_RUNS, *PARTS})
"""Number of measured runs."""

LEVELS: Final = (0.1, 0.5, 0.9)
"""Shares of measured runs with smaller errors than the three values of an `ErrorRange`."""


class ErrorRange(NamedTuple):
    """Expected error: that of most runs is between the first and the last value."""

    low: float
    typical: float
    high: float


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
        return ErrorRange(*(self._stderr(level, mean_of) for level in LEVELS))

    def _stderr(self, level: float, mean_of: int) -> float:
        # `level` is the share of measured runs whose parts are smaller.
        kind = self.optimizer or "adaptive"
        of_kind = [parts for parts in PARTS.values() if parts.optimizer == kind]
        by_ends = kind != "adaptive"
        of_distance = [
            parts
            for parts in PARTS.values()
            if (parts.optimizer != "adaptive") == by_ends
        ]
        grown = self._grown(self.rate)
        longer = grown.signs / self._grown("constant").signs
        ratio = longer * float(np.quantile(self._signs(), level))
        signs = self.plain * ratio
        turned = grown.ends if by_ends else grown.distance
        rest = turned * _quantile(of_distance, "distance", level)
        rest *= sqrt(PROBES / self.probes * self.crowding) * self._of_basis("distance")
        if mean_of > 1:
            # What is known of a window's sum says less about a part of the window.
            windows = self.window / self.epoch
            with_sums = [parts for parts in of_kind if parts.has_sum]
            left = _quantile(with_sums, "mean_signs", level) ** 2
            if by_ends:
                # The sum of a window's updates is as uncertain as its ends.
                ends = ratio * END_ERROR * sqrt(self.crowding / self.probes)
                ends *= _quantile(of_kind, "ends", level)
                left = (left * signs**2 + ends**2) / (signs**2 + ends**2)
            left = left_in_mean(left, windows) if self.has_sums else 1.0
            signs *= sqrt(left / mean_of)
            shared = _quantile(of_distance, "mean_distance_alone", level)
            if self.has_displacement_sums:
                from_sum = SUM_RATIO * self.plain * sqrt(self.probes)
                known = _quantile(of_distance, "mean_distance", level)
                known = min(hypot(known, from_sum), shared)
                shared = left_in_mean(known, windows, most=shared)
            rest *= shared
        return hypot(signs, rest, ROUNDING * longer / sqrt(mean_of))

    def _signs(self) -> list[float]:
        """Return the error from signs over that of a plain sketch, by measured run."""
        found = []
        for run in MEASURED_RUNS.values():
            # The largest measured basis is used that has no more vectors than the planned one.
            bases = [r for r in run.ratios if r <= self.basis]
            if bases:
                ratios = run.ratios[max(bases)]
                found.append(_interpolated(run.shares, ratios, self.window))
        of_basis = self._of_basis("signs")
        for name, parts in PARTS.items():
            if name in MEASURED_RUNS:
                continue
            # Mean squares of the residual grow in proportion to the length of windows.
            longer = 1 + WINDOW_SLOPE * self.window / parts.share
            longer /= 1 + WINDOW_SLOPE
            found.append(parts.signs * sqrt(longer) * of_basis)
        return found

    def _of_basis(self, part: Literal["signs", "distance"]) -> float:
        """Return a part of the error relative to that with the largest measured basis."""
        known = [b for b in BASIS_RATIOS if b <= self.basis]
        signs, distance = BASIS_RATIOS[max(known)]
        return signs if part == "signs" else distance

    def _grown(self, rate: Rate) -> Growth:
        return growth(rate, n_steps=self.n_steps, window=self.window, epoch=self.epoch)


def left_in_mean(whole: float, windows: float, most: float = 1.0) -> float:
    """Return what is left of an error in an epoch mean if sums of windows are known."""
    # A window of one epoch leaves `whole`, and none leaves `most`; `windows` is the length of a
    # window in epochs.
    # Several windows in an epoch leave less of it; a longer one says less of the epoch.
    if windows <= 1:
        return whole * sqrt(windows)
    return most - (most - whole) / windows


def mean_distance_alone() -> float:
    """Return the error of a mean distance relative to that of a step, if no sum tells it."""
    of_kind = [parts for parts in PARTS.values() if parts.optimizer == "adaptive"]
    return _quantile(of_kind, "mean_distance_alone", LEVELS[1])


def mean_of_signs(kind: Optimizer) -> float:
    """Return what is typically left of an error from signs in a mean if its window's sum is known."""
    of_kind = [p for p in PARTS.values() if p.optimizer == kind and p.has_sum]
    return _quantile(of_kind, "mean_signs", LEVELS[1])


def _quantile(runs: list[Parts], name: str, level: float) -> float:
    return float(np.quantile([getattr(parts, name) for parts in runs], level))


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
