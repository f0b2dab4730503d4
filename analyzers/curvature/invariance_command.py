"""Sub-command that finds the tensors whose scale the loss does not depend on."""

import numpy as np
import xarray as xr
from rich.table import Table
from tyro.conf import Positional

from analyzers._execution.results import store_result
from analyzers._reporting import make_table, report
from analyzers.curvature import plots
from analyzers.curvature.scale_invariance import TOLERANCE, scale_invariance
from trajstore.reading.run import open_run


def invariance(store: Positional[str], *, tolerance: float = TOLERANCE) -> None:
    """Cosines of tensors and their gradients: zero where the scale does not matter.

    Prints a table by tensor; results go to RUN.analysis.zarr, a figure to RUN.figures.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    tolerance : float, default: 1e-4
        Largest |cosine| in any step that is taken for zero.
    """
    run = open_run(store)
    found = store_result(run, "invariance", scale_invariance(run, tolerance=tolerance))
    report(
        run,
        _table(found),
        _summary(found, tolerance),
        figures={"invariance": plots.scale_invariance(found)},
        groups=["invariance"],
        name="found",
        example="found.cosine_max.values",
    )


def _summary(found: xr.Dataset, tolerance: float) -> str:
    """Say how many tensors are invariant, and what their growth is compared with."""
    n = int(found["is_invariant"].sum())
    text = (
        f"{n} of {found.sizes['layer']} tensors are invariant: |cosine| is at most "
        f"{tolerance:g} in every step."
    )
    if np.isfinite(found["expected_growth"]).any():
        text += " Growth of |w|^2 is expected to be the sum of lr^2 |g|^2 for them."
    return text


def _table(found: xr.Dataset) -> Table:
    table = make_table(
        "tensor", "rms", "largest", "invariant", "growth", "expected", text=["tensor"]
    )
    for i, name in enumerate(found["layer"].values):
        row = found.isel(layer=i)
        cosines = [f"{row[f'cosine_{kind}'].item():.1e}" for kind in ("rms", "max")]
        growths = [row[kind].item() for kind in ("growth", "expected_growth")]
        table.add_row(
            str(name),
            *cosines,
            "yes" if row["is_invariant"].item() else "no",
            *(f"{value:.3g}" if np.isfinite(value) else "-" for value in growths),
        )
    return table
