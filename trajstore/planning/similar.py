"""Errors of a recorded run, scaled to other windows, epochs and lengths of the run.

The analysis of the run tells its errors with any sketch and any number of probes. What is left to
scale is small: the windows and epochs of the plan may be longer or shorter than those of the run.
"""

from dataclasses import dataclass, replace
from math import sqrt
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from trajstore.format.run_spec import RunSpec
from trajstore.format.sketch_size import MAX_SIZE
from trajstore.planning.errors import Rate, mean_distance_alone, mean_of_signs
from trajstore.planning.measured import Optimizer

OF_SKETCH: Final = (
    "sketch_version",
    "sketch_bits",
    "bits_per_number",
    "probes",
    "displacement_sum",
    "window_folds",
)
"""Options whose errors a recorded run tells for any of their values."""


class RecordedErrors(NamedTuple):
    """Root-mean-square standard errors of gamma in a recording, mid-run."""

    step: float
    mean: float | None  # of epoch means; None if the run has too few epochs


class ErrorsByOptions(Protocol):
    """Errors of recordings of one training run with different options."""

    def of(self, spec: RunSpec) -> RecordedErrors:
        """Return the errors with the sketch and the probes of a spec."""

    @property
    def doubled(self) -> float:
        """Variance of products in windows of twice the length, relative to that of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A recorded run, from which plans of similar runs extrapolate."""

    spec: RunSpec  # its `total_steps` is the number of recorded steps
    rate: Rate
    optimizer: Optimizer
    errors: ErrorsByOptions

    def with_sketch_of(self, spec: RunSpec) -> RunSpec:
        """Return the options of the run with the sketch and the probes of a plan."""
        return replace(self.spec, **{name: getattr(spec, name) for name in OF_SKETCH})


class Times(NamedTuple):
    """Lengths in a run, and how sums of windows sharpen its means."""

    window: float  # mean length of the windows of steps, as a fraction of the run
    mean_of: float  # steps of an epoch
    # What is left of an error in the mean of an epoch, if a window of one epoch leaves x of it,
    # and nothing is known without windows: ``slope * x + offset``.
    slope: float
    offset: float
    # Variance of an epoch mean from the rounded ends of windows, relative to windows of one epoch.
    ends: float


def times_of(lengths: npt.NDArray[np.int64], *, n_steps: int, mean_of: int) -> Times:
    """Return the times of the middle of a run whose windows have these lengths."""
    stops = np.cumsum(lengths)
    edge = min(mean_of, n_steps // 4)
    inside = np.minimum(stops, n_steps - edge) - np.maximum(stops - lengths, edge)
    share = np.maximum(inside, 0).astype(np.float64)
    if not share.any():
        share = lengths.astype(np.float64)
    share /= share.sum()
    window = float(share @ lengths) / n_steps
    # The sum of a window that is longer than an epoch tells less of the epoch. Sums of several
    # windows in an epoch leave less of its error.
    epochs = lengths / mean_of
    is_longer = epochs > 1
    slope = np.where(is_longer, 1 / epochs, np.sqrt(epochs))
    offset = np.where(is_longer, 1 - 1 / epochs, 0)
    # The variance of the rounding of a window's ends is proportional to its length. Of longer windows
    # an epoch has its share; of shorter ones only the ends of the epoch count.
    ends = np.minimum(epochs, 1 / epochs)
    sums = (float(share @ values) for values in (slope, offset, ends))
    return Times(window, mean_of, *sums)


def scaled_step(like: Recorded, spec: RunSpec, own: Times, planned: Times) -> float:
    """Return the error of a step in a plan with the sketch of `spec`."""
    error = like.errors.of(like.with_sketch_of(spec)).step
    expected, found = (
        sum(_step_variances(like, spec, own, times)) for times in (planned, own)
    )
    return error * sqrt(expected / found) if found > 0 else error


def scaled_mean(
    like: Recorded, spec: RunSpec, own: Times, planned: Times
) -> float | None:
    """Return the error of an epoch mean; None if the run has too few epochs to tell it."""
    error = like.errors.of(like.with_sketch_of(spec)).mean
    if error is None:
        return None
    # Errors of products and of distances are a little alike, which the parts do not know.
    expected, found = (
        _mean_variance(like, spec, own, times) for times in (planned, own)
    )
    return error * sqrt(expected / found) if found > 0 else error


def _mean_variance(like: Recorded, spec: RunSpec, own: Times, times: Times) -> float:
    spec = like.with_sketch_of(spec)
    signs, both = like.errors.of(_without_probes(spec)), like.errors.of(spec)
    assert signs.mean is not None
    assert both.mean is not None
    of_signs, of_distance = _step_variances(like, spec, own, times)
    left = 1.0
    if signs.step > 0:
        left = min(1.0, signs.mean**2 * own.mean_of / signs.step**2)
    if like.optimizer != "adaptive" or spec.window_folds > 0:
        least = mean_of_signs(like.optimizer) ** 2
        left = _left(left, own, times, least=min(least, left))
    of_signs *= left / times.mean_of
    if like.optimizer != "adaptive":
        ends = max(0.0, both.mean**2 - signs.mean**2)
        return of_signs + ends * times.ends / own.ends
    distance = both.step**2 - signs.step**2
    shared = 0.0
    if distance > 0:
        shared = sqrt(max(0.0, both.mean**2 - signs.mean**2) / distance)
    if spec.displacement_sum:
        most = max(mean_distance_alone(), shared)
        shared = _left(shared, own, times, most=most)
    return of_signs + of_distance * shared**2


def _step_variances(
    like: Recorded, spec: RunSpec, own: Times, planned: Times
) -> tuple[float, float]:
    """Return the variance of a step from the sketch, and that from the distance."""
    spec = like.with_sketch_of(spec)
    signs, both = like.errors.of(_without_probes(spec)).step, like.errors.of(spec).step
    # Mean squares of the residual grow in proportion to the length of windows.
    slope = max(0.0, like.errors.doubled - 1)
    slope /= max(2 - like.errors.doubled, 0.1)
    longer = (1 + slope * planned.window / own.window) / (1 + slope)
    # Displacements within a window are random walks. A known sum takes away their slowest part.
    walk = planned.window / own.window
    if spec.displacement_sum:
        walk = sqrt(walk)
    return signs**2 * longer, max(0.0, both**2 - signs**2) * walk


def _without_probes(spec: RunSpec) -> RunSpec:
    """Return options with which probes cause hardly any error."""
    return replace(spec, probes=MAX_SIZE)


def _left(
    share: float, own: Times, times: Times, *, least: float = 0.0, most: float = 1.0
) -> float:
    """Scale what sums of windows leave of an error in an epoch mean; `most` is left without them."""
    whole = (share - own.offset * most) / own.slope
    if own.offset > 0:
        # Long windows hardly tell what shorter ones would leave.
        whole = max(whole, least)
    whole = min(max(whole, 0.0), most)
    return times.slope * whole + times.offset * most
