"""Epochs, or ranges of steps, as rows of tables and places on an axis."""

from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

N_RANGES: Final = 20
"""Default number of ranges into which a run without epochs is divided."""

WINDOW_STARTS: Final = "window_starts"
"""Attribute of the geometry of a run without epochs: the first steps of its windows."""

STEP_ERRORS: Final = "step_errors"
"""Attribute of a geometry whose errors are `INDEPENDENT` between steps."""

ROUNDING_ERROR: Final = "rounding_error"
"""Attribute of a geometry: the relative error from rounding that all its steps share."""

INDEPENDENT: Final = "independent"


def time_of(means: xr.Dataset) -> Literal["epoch", "step"]:
    """Return the dimension of means: epochs, or ranges of steps."""
    return "epoch" if "epoch" in means.dims else "step"


def label_of(means: xr.Dataset, i: int) -> str:
    """Return the number of an epoch, or the first and the last step of a range."""
    if time_of(means) == "epoch":
        return str(means["epoch"].values[i])
    return f"{means['step'].values[i]}-{means['last_step'].values[i]}"


def has_one_epoch(epochs: npt.NDArray[Any]) -> bool:
    """Whether several steps, of which these are the epochs, have one epoch: a run without epochs."""
    return len(epochs) > 1 and bool((epochs == epochs[0]).all())


def by_time(
    steps: xr.Dataset, n_ranges: int = N_RANGES, *, size: int | None = None
) -> tuple[xr.Dataset, str]:
    """Return a dataset of steps to group by its coordinate ``epoch``, and what that counts."""
    # A run with one epoch is divided into ranges of steps, numbered by their first steps.
    # `size` is the number of steps in a range, if other runs have the same ranges.
    plain = steps.drop_indexes(["epoch", "iteration"], errors="ignore")
    epochs = plain["epoch"].values
    n = len(epochs)
    if not has_one_epoch(epochs):
        return plain, "epoch"
    numbers = plain["step"].values if "step" in plain.coords else np.arange(n)
    size = size or -(-n // n_ranges)
    first = numbers[np.arange(n) // size * size]
    return plain.assign_coords(epoch=("step", first)), "step"


def middles_of(steps: xr.Dataset, time: str) -> npt.NDArray[Any]:
    """Return the places on an axis of the groups that `by_time` makes, (epoch,)."""
    labels, codes = np.unique(steps["epoch"].values, return_inverse=True)
    if time == "epoch":
        return labels
    numbers = steps["step"].values if "step" in steps.coords else np.arange(len(codes))
    found: npt.NDArray[Any] = np.bincount(codes, numbers) / np.bincount(codes)
    return found


def edges_of(means: xr.Dataset) -> Any:
    """Return where epochs or ranges of steps start and stop on an axis, (2, epoch)."""
    if time_of(means) == "epoch":
        return np.add.outer([-0.5, 0.5], means["epoch"].values)
    return np.stack([means["step"].values - 0.5, means["last_step"].values + 0.5])
