"""The golden stores of format version 2, and the values read from them and computed on them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

import analyzers
from tests.golden.cases import ANALYSES as ALL_ANALYSES
from tests.golden.cases import BY_LAYER, READINGS, Case, On, OnMeasurement, geometry
from trajstore.reading.run import Run
from trajstore.reading.verify import problems

STORES: Final = Path(__file__).with_name("stores_v2")

RESULTS: Final = Path(__file__).with_name("results_v2.npz")

COMPLETE: Final = (
    *("momentum", "adamw_sums", "packed", "exact", "float64", "float64_exact"),
    *("resumed", "by_hand"),
)
"""Stores that hold the last iterate."""

EVERY: Final = (*COMPLETE, "journal", "journal_recovered")


def verified(run: Run) -> xr.Dataset:
    """Return the version of a store, and what is wrong with it."""
    found = [str(problem) for problem in problems(run, track=iter)]
    spec = run.spec
    values: dict[str, Any] = {
        "version": run.stored.document.version,
        "problems": "; ".join(found),
        "n_checks": sum(
            array.length > 0 for array in run.stored.document.arrays.values()
        ),
        "bits_per_number": spec.bits_per_number,
        "window_folds": spec.window_folds,
        "energies": spec.energies,
        "float64": spec.float64,
    }
    return xr.Dataset({name: ((), value) for name, value in values.items()})


def window_sums(run: Run) -> xr.Dataset:
    """Return the decoded sums of the gradients of each window, and their energies."""
    windows = range(run.n_windows)
    sums = [run.stored.window_sum(c) for c in windows]
    energies = [run.stored.block_energies(c) for c in windows]
    known = [s for s in sums if s is not None], [e for e in energies if e is not None]
    variables = {}
    for name, values in zip(("sums", "energies"), known, strict=True):
        if values:
            dims = [f"{name}_{i}" for i in range(np.ndim(values))]
            variables[name] = (dims, np.array(values))
    return xr.Dataset(variables)


KEPT_ANALYSES: Final = ("path_geometry", "zigzag", "lagged_gradients", "smoothness")

CASES: Final[Mapping[str, Case]] = {
    **{
        f"{store}/{name}": On(store, analysis)
        for store in EVERY
        for name, analysis in READINGS.items()
    },
    **{f"{store}/verified": On(store, verified) for store in EVERY},
    **{
        f"{store}/{name}": On(store, ALL_ANALYSES[name])
        for store in COMPLETE
        for name in KEPT_ANALYSES
    },
    **{
        f"{store}/epoch_means": On(
            store, lambda run: analyzers.epoch_means(geometry(run))
        )
        for store in COMPLETE
    },
    **{
        f"{store}/path_geometry-layers": On(store, BY_LAYER["path_geometry-layers"])
        for store in ("momentum", "adamw_sums", "float64")
    },
    **{
        f"{store}/window_sums": On(store, window_sums)
        for store in ("momentum", "adamw_sums")
    },
    "packed/measured-path_geometry": OnMeasurement("packed", "full_batch", geometry),
    "float64/path_geometry-snapshot": On(
        "float64", lambda run: geometry(run, "middle")
    ),
}
"""Cases by name."""
