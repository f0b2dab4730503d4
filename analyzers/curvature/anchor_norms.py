"""Norms of a run's anchors, for runs whose tables lack the norms of iterates."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers._engine.slices import segments, slices
from analyzers._engine.tables import VALUES
from analyzers._engine.tasks import PART, task
from trajstore.format.arrays import LAYER, STEP
from trajstore.reading.run import Run

FloatArray = npt.NDArray[np.floating[Any]]


def anchor_norms(run: Run) -> xr.DataArray:
    """Return the norm of each step's anchor by layer, lazy float64 (step, layer)."""
    # Norms are NaN where an anchor is damaged. Each task decodes all anchors over one part
    # of the parameters.
    n_layers = len(run.layout.names)
    parts = [
        task(partial(squares, run, elements))
        for elements in slices(slice(0, run.layout.size), PART)
    ]
    by_window = task(norms, parts)
    window_of_step = (
        np.searchsorted(run.stored.starts, np.arange(run.n_steps), side="right") - 1
    )
    arrays = [
        da.from_delayed(  # type: ignore[no-untyped-call]
            task(partial(take_windows, window_of_step[steps]), by_window),
            shape=(steps.stop - steps.start, n_layers),
            dtype=np.float64,
        )
        for steps in slices(slice(0, run.n_steps), max(1, VALUES // n_layers))
    ]
    values = da.concatenate(arrays)  # type: ignore[no-untyped-call]
    return xr.DataArray(values, dims=(STEP, LAYER))


def squares(run: Run, elements: slice) -> FloatArray:
    """Sum the squares of anchors over `elements` by layer, float64 (window, layer)."""
    pieces = segments(run.layout, elements)
    total = np.zeros((run.n_windows, len(run.layout.names)))
    buffers = np.empty((2, elements.stop - elements.start), run.stored.anchors.dtype)
    windows = range(run.n_windows)
    for c, anchor in zip(
        windows,
        run.stored.anchors.decode_each(windows, elements, [*buffers]),
        strict=True,
    ):
        for layer, part in pieces:
            values = anchor[part].astype(np.float64)
            total[c, layer] += values @ values
    return total


def norms(parts: Sequence[FloatArray]) -> FloatArray:
    """Add the sums of squares of all parts; return norms, float64 (window, layer)."""
    result: FloatArray = np.sqrt(np.sum(parts, axis=0))
    return result


def take_windows(
    window_of_step: npt.NDArray[np.int64], by_window: FloatArray
) -> FloatArray:
    """Return the values of each step's window, float64 (step, layer)."""
    return by_window[window_of_step]
