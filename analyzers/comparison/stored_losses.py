"""Read the losses along a path that ``traj-train replay`` has stored next to a run."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import xarray as xr

from trajstore.format.attrs import LINES, PLANE
from trajstore.reading.results import results_location
from trajstore.reading.run import Run
from trajstore.reading.stored_results import (
    ExpectedArray,
    open_arrays,
    read_attributes,
    read_metadata,
)

MAX_LENGTH: Final = 4096
"""Largest length of a dimension of losses."""

VARIABLES: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    LINES: {
        "loss": ("epoch", "fraction"),
        "fraction": ("fraction",),
        "epoch": ("epoch",),
    },
    PLANE: {
        "loss": ("second", "first"),
        "first": ("first",),
        "second": ("second",),
        "explained_variance_ratio": ("component",),
        **dict.fromkeys(
            ("point_loss", "projected_loss", "point_first", "point_second"), ("point",)
        ),
    },
}
"""Dimensions of the variables of each group, all float64."""


def read_losses(run: Run, group: str) -> xr.Dataset | None:
    """Read a group of losses; None if the run has none."""
    location = results_location(run)
    if read_attributes(location, group) is None:
        return None
    sizes: dict[str, int] = {}
    for name, dims in VARIABLES[group].items():
        shape = read_metadata(location, f"{group}/{name}").get("shape", ())
        for dim, length in zip(dims, shape, strict=False):
            is_valid = type(length) is int and 0 < length <= MAX_LENGTH
            sizes.setdefault(dim, length if is_valid else 0)
    expected = {
        name: ExpectedArray(tuple(sizes.get(dim, 0) for dim in dims))
        for name, dims in VARIABLES[group].items()
    }
    arrays = open_arrays(location, group, expected)
    if arrays is None:
        return None
    values = {
        name: (dims, np.asarray(arrays[name][:]))
        for name, dims in VARIABLES[group].items()
    }
    data = xr.Dataset(values).set_coords(
        [name for name in ("epoch", "fraction", "first", "second") if name in values]
    )
    if group == PLANE:
        apart = abs(data["point_loss"] - data["projected_loss"])
        data.attrs["projection_error"] = float(apart.max())
    return data
