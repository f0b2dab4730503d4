"""Label results with coordinates, long names and units."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from trajstore.format.arrays import STEP
from trajstore.reading.run import Run

STDERR = "_stderr"
"""Suffix of the variable that holds a quantity's standard error."""


def describe(
    dataset: xr.Dataset,
    long_names: Mapping[str, str | tuple[str, str]],
    *,
    units: str | Mapping[str, str] = "1",
) -> xr.Dataset:
    """Return a copy of the dataset with long names, definitions and units."""
    # A value of `long_names` is a long name, or a long name and a definition. A variable
    # `q_stderr` without an entry is labelled as the standard error of `q`; other variables
    # without an entry keep their attributes. Quantities missing in `units` get units of 1.
    described = dataset.copy()
    for name in map(str, dataset.data_vars):
        quantity = name if name in long_names else name.removesuffix(STDERR)
        if quantity not in long_names:
            continue
        entry = long_names[quantity]
        labels: tuple[str, ...] = (entry,) if isinstance(entry, str) else entry
        if name != quantity:
            labels = (f"standard error of {quantity}", "first order")[: len(labels)]
        unit = units if isinstance(units, str) else units.get(quantity, "1")
        described[name].attrs = {
            **dict(zip(("long_name", "definition"), labels, strict=False)),
            "units": unit,
        }
    return described


def layer_names(run: Run) -> npt.NDArray[np.object_]:
    """Return the names of the layers, objects (layer,)."""
    # Zarr's specification covers variable-length strings, but not fixed-width strings.
    # Halves of characters, which a foreign store may contain, cannot be encoded.
    names = [n.encode(errors="backslashreplace").decode() for n in run.layout.names]
    return np.array(names, object)


def step_coordinates(run: Run, rows: Any = slice(None)) -> dict[str, Any]:
    """Return the coordinates ``step``, ``epoch`` and ``iteration`` of `rows`."""
    return {
        STEP: run.stored.step_numbers[rows],
        "epoch": (STEP, run.stored.epochs[rows]),
        "iteration": (STEP, run.stored.iterations[rows]),
    }
