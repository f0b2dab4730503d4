"""What was recorded of steps, in chunks: so that analyses of it are of bounded memory."""

from typing import Final

import numpy as np
import xarray as xr

from trajstore.format.arrays import LAYER, STEP
from trajstore.reading.run import Run

VALUES: Final = 1 << 20
"""Values of a table in a chunk."""


def check_basis(run: Run, what: str) -> None:
    """Refuse what needs products with the parameters, if these are not known.

    Parameters
    ----------
    run : trajstore.Run
        The run, or a measurement of it.
    what : str
        What needs them.

    Raises
    ------
    ValueError
        If the run was recorded with ``basis=0``.
    """
    if run.spec.basis == 0:
        raise ValueError(
            f"{what} needs the norms of the parameters and their products with gradients, "
            f"which {run.location} does not have: it was recorded with basis=0; record "
            "with basis=1 or more."
        )


def tables(run: Run, *names: str) -> xr.Dataset:
    """Return recorded scalars and tables as Dask arrays.

    Parameters
    ----------
    run : trajstore.Run
        The run, or a measurement of it.
    *names : str
        Of variables of ``run.steps``.

    Returns
    -------
    xarray.Dataset
        Lazy, with the coordinates ``step``, ``epoch`` and ``iteration``, and ``layer``
        where there is one.
    """
    chosen = run.steps[list(names)].drop_vars("window")
    if LAYER in chosen.coords:
        # Fixed-width strings have no place in Zarr's specification; these have.
        chosen = chosen.assign_coords({LAYER: np.array(run.layout.names, object)})
    rows = max(1, VALUES // max(1, len(run.layout.names)))
    return chosen.chunk({STEP: rows})
