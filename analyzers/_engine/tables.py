"""Read recorded scalars and tables, in chunks that bound the memory of analyses."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers._engine.labels import layer_names
from trajstore.format.arrays import LAYER, STEP, table_columns
from trajstore.reading.run import Run

FloatArray = npt.NDArray[np.floating[Any]]

VALUES: Final = 1 << 20
"""Values per chunk of a table."""


def check_basis(run: Run, analysis: str) -> None:
    """Raise ValueError for a run with basis=0, which lacks products with the parameters."""
    if run.spec.basis == 0:
        raise ValueError(
            f"{analysis} needs the norms of the parameters and their products with "
            f"gradients, which {run.location} does not have: it was recorded with basis=0; "
            "record with basis=1 or more."
        )


def tables(run: Run, *names: str) -> xr.Dataset:
    """Return variables of ``run.steps`` as Dask arrays, without the coordinate ``window``."""
    chosen = run.steps[list(names)].drop_vars("window")
    if LAYER in chosen.coords:
        chosen = chosen.assign_coords({LAYER: layer_names(run)})
    rows = max(1, VALUES // max(1, len(run.layout.names)))
    return chosen.chunk({STEP: rows})


def read_tables(run: Run, steps: slice) -> dict[str, FloatArray]:
    """Read the tables of `steps` by name, each float64 (step, layer[, basis])."""
    values = run.stored.rows("tables", steps).astype(np.float64)
    return {
        name: values[..., columns if name.endswith("_basis") else columns.start]
        for name, columns in table_columns(run.spec).items()
    }


def sketch_weights(run: Run, window: int) -> FloatArray:
    """Return the weights of the layers in a window's sketch, float64 (layer,)."""
    return np.asarray(run.windows.variables["weights"].values[window], np.float64)
