"""Epochs, or ranges of steps, as rows of tables and places on an axis."""

from typing import Any, Literal

import numpy as np
import xarray as xr


def time_of(means: xr.Dataset) -> Literal["epoch", "step"]:
    """Return the dimension of means: epochs, or ranges of steps."""
    return "epoch" if "epoch" in means.dims else "step"


def label_of(means: xr.Dataset, i: int) -> str:
    """Return the number of an epoch, or the first and the last step of a range."""
    if time_of(means) == "epoch":
        return str(means["epoch"].values[i])
    return f"{means['step'].values[i]}-{means['last_step'].values[i]}"


def edges_of(means: xr.Dataset) -> Any:
    """Return where epochs or ranges of steps start and stop on an axis, (2, epoch)."""
    if time_of(means) == "epoch":
        return np.add.outer([-0.5, 0.5], means["epoch"].values)
    return np.stack([means["step"].values - 0.5, means["last_step"].values + 0.5])
