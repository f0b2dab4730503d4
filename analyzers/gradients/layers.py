"""Zigzag layer by layer: cosines of adjacent gradients over parts of a run."""

from typing import Final

import numpy as np
import xarray as xr

from analyzers._engine.labels import describe, layer_names
from analyzers.gradients.arrays.segments import (
    KINDS,
    part_percentiles,
    running_median,
    step_kinds,
)
from analyzers.gradients.segments import (
    CRITERION,
    KIND_NAMES,
    THRESHOLD,
    WINDOW,
    check_criterion,
)
from analyzers.gradients.zigzag import zigzag
from trajstore.format.arrays import LAYER
from trajstore.reading.run import Run

N_PARTS: Final = 60
"""Parts of the run, with equally many steps."""

LONG_NAMES: Final = {
    "cosine": "median cosine of adjacent gradients in a part of the run",
    "mean_cosine": "mean cosine of adjacent gradients",
    "first": "first step of the part",
    "step_share": "share of the steps",
}


def zigzag_layers(
    run: Run, *, window: int = WINDOW, threshold: float = THRESHOLD
) -> xr.Dataset:
    """Cosines of adjacent gradients layer by layer, in parts of a run.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.
    window : int, default: 11
        Steps of the running median, odd.
    threshold : float, default: 0.5
        As in `zigzag_segments`.

    Returns
    -------
    xarray.Dataset
        Loaded. Dimension ``layer``. By ``part``, up to 60 parts with equally many steps:
        ``cosine``, the median, and ``first``, the first step of the part. By ``kind``:
        ``step_share``, by the criterion of `zigzag_segments` for the layer alone. And
        ``mean_cosine``, over all steps. Units of 1. NaN where gradients are 0.

    Raises
    ------
    ValueError
        As for `zigzag_segments`.
    """
    check_criterion(window, threshold)
    cosines = zigzag(run, layers=True)["cosine"].compute()
    n_parts = min(N_PARTS, run.n_steps)
    by_part, step_share, means = [], [], []
    for name in cosines[LAYER].values:
        cosine = cosines.sel({LAYER: name}).values
        labels = step_kinds(running_median(cosine, window), threshold)
        by_part.append(part_percentiles(cosine, 50, n_parts=n_parts))
        step_share.append([np.mean(labels == kind) for kind in KINDS])
        known = cosine[np.isfinite(cosine)]
        means.append(known.mean() if len(known) else np.nan)
    first = [part[0] for part in np.array_split(run.stored.step_numbers, n_parts)]
    variables = {
        "cosine": ((LAYER, "part"), np.array(by_part)),
        "mean_cosine": (LAYER, np.array(means)),
        "first": ("part", np.array(first)),
        "step_share": ((LAYER, "kind"), np.array(step_share)),
    }
    coordinates = {LAYER: layer_names(run), "kind": KIND_NAMES}
    attributes = {
        "run": run.location,
        "criterion": CRITERION,
        "window": window,
        "threshold": threshold,
    }
    return describe(xr.Dataset(variables, coordinates, attributes), LONG_NAMES)
