"""Measure the length of the path, and the distance from its start."""

import numpy as np
import xarray as xr

from analyzers.geometry.path_geometry import path_geometry
from trajstore.reading.accepts_path import accepts_path
from trajstore.reading.run import Run


@accepts_path
def distance_travelled(run: Run) -> xr.Dataset:
    """Return the length of the path up to every step, and the distance from the start.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.

    Returns
    -------
    xarray.Dataset
        Loaded, with the dimension ``step``, the coordinates ``epoch`` and ``iteration``, and
        units of 1. ``path_length`` is the exact sum of the lengths of the updates before
        step k, and NaN after an update that is not finite. ``from_start`` is ``|x_k - x_0|``,
        and ``from_start_stderr`` its standard error.

    Raises
    ------
    ValueError
        If the run has no steps.
    KeyError
        If the anchor at the start of the run is damaged.
    """
    from_start = path_geometry(run, reference=0)
    norms = run.steps["update_norm"].values
    lengths = np.concatenate([[0.0], np.cumsum(norms[:-1])])
    distance = from_start["distance"].assign_attrs(long_name="distance from the start")
    path_length = distance.copy(data=lengths).assign_attrs(
        long_name="length of the path", definition="sum of |u_j| over j < k"
    )
    travelled = {
        "path_length": path_length,
        "from_start": distance,
        "from_start_stderr": from_start["distance_stderr"],
    }
    return xr.Dataset(travelled).compute()
