"""Measure zigzag layer by layer: cosines of adjacent gradients in parts of a run."""

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
from analyzers.gradients.defaults import THRESHOLD, WINDOW
from analyzers.gradients.segments import (
    CRITERION,
    KIND_NAMES,
    check_criterion,
)
from analyzers.gradients.zigzag import zigzag
from trajstore.format.arrays import LAYER
from trajstore.reading.accepts_path import accepts_path
from trajstore.reading.run import Run

N_PARTS: Final = 60
"""Number of parts that a run is divided into, with the same number of steps each."""

LONG_NAMES: Final = {
    "cosine": "median cosine of adjacent gradients in a part of the run",
    "mean_cosine": "mean cosine of adjacent gradients",
    "first": "first step of the part",
    "step_share": "share of the steps",
}


@accepts_path
def zigzag_layers(
    run: Run, *, window: int = WINDOW, threshold: float = THRESHOLD
) -> xr.Dataset:
    """Return the cosines of adjacent gradients by layer, in parts of a run.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.
    window : int, default: 11
        Number of steps in the running median, odd.
    threshold : float, default: 0.5
        Threshold for the running median, from 0 to 1, as in `zigzag_segments`.

    Returns
    -------
    xarray.Dataset
        Loaded, with the dimension ``layer`` and units of 1. By ``part``, for up to 60 parts
        with the same number of steps: the median ``cosine``; and ``first``, the first step.
        By ``kind``: ``step_share``, the share of steps of each kind, where the criterion of
        `zigzag_segments` is applied to the layer alone. ``mean_cosine`` is the mean over all
        steps. Values are NaN where gradients are 0.

    Raises
    ------
    ValueError
        If the run has fewer than two steps or is a measurement, or if a number is out of
        range.
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
