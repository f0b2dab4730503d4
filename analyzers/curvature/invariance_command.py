"""Sub-command that finds the tensors whose scale the loss does not depend on."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from analyzers._execution.results import store_result
from analyzers._reporting import figures_directory, say, say_how_to_open
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
    mpl.use("agg")
    Console().print(_table(found))
    n = int(found["is_invariant"].sum())
    say(
        f"\n{n} of {found.sizes['layer']} tensors are invariant: |cosine| is at most "
        f"{tolerance:g} in every step."
    )
    if np.isfinite(found["expected_growth"]).any():
        say(
            "Growth of |w|^2 is expected to be the sum of lr^2 |g|^2, if they are invariant."
        )
    path = figures_directory(run) / "invariance.png"
    plots.scale_invariance(found)
    plt.savefig(path, dpi=150)
    plt.close("all")
    say(f"\nFigure: {path}")
    say_how_to_open(run, "invariance", "found", "found.cosine_max.values")


def _table(found: xr.Dataset) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tensor", overflow="fold", max_width=36)
    for header in ("rms", "largest", "invariant", "growth", "expected"):
        table.add_column(header, justify="right", no_wrap=True)
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
