"""Sub-command that draws the losses along a path."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import xarray as xr
from rich.table import Table
from tyro.conf import Positional

from analyzers._reporting import PNG, Drawn, FigureFiles, make_table, report
from analyzers.comparison import plots
from analyzers.comparison.path_pca import path_pca
from trajstore.reading.results import LINES, PLANE, results_location
from trajstore.reading.run import Run, open_run
from trajstore.reading.stored_results import (
    ExpectedArray,
    open_arrays,
    read_attributes,
    read_metadata,
)

MAX_LENGTH: Final = 4096
"""Largest length of a dimension of losses."""

VARIABLES: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    LINES: {
        "loss": ("epoch", "fraction"),
        "fraction": ("fraction",),
        "epoch": ("epoch",),
    },
    PLANE: {
        "loss": ("second", "first"),
        "first": ("first",),
        "second": ("second",),
        "explained_variance_ratio": ("component",),
        **dict.fromkeys(
            ("point_loss", "projected_loss", "point_first", "point_second"), ("point",)
        ),
    },
}
"""Dimensions of the variables of each group, all float64."""


def losses(store: Positional[str], *, files: FigureFiles = PNG) -> None:
    """Draw the losses on lines to a target and on the plane of a path.

    Needs losses that traj-train replay RUN --lines or --plane 15 has evaluated. Figures go to
    RUN.figures, next to the store.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    files : FigureFiles
        Format and resolution of the figures.
    """
    run = open_run(store)
    found = _found(run, store)
    figures: dict[str, Drawn] = {}
    parts: list[Table | str] = []
    if LINES in found:
        figures[LINES] = plots.losses_towards(found[LINES])
        parts.append(_lines(found[LINES]))
    if PLANE in found:
        path = path_pca(run).compute()
        figures[PLANE] = plots.losses_on_plane(found[PLANE], path)
        parts.append(_plane_note(found[PLANE]))
    report(
        run,
        *parts,
        figures=figures,
        files=files,
        groups=[*found],
        name="losses",
        example="losses.loss.values",
    )


def _found(run: Run, store: str) -> dict[str, xr.Dataset]:
    """Return the losses next to a run, by group; raise a FileNotFoundError without any."""
    found = {
        group: data for group in VARIABLES if (data := _read(run, group)) is not None
    }
    if not found:
        raise FileNotFoundError(
            f"There are no losses along the path next to {store}. Evaluate them with "
            f"traj-train replay {store} --lines --plane 15."
        )
    return found


def _read(run: Run, group: str) -> xr.Dataset | None:
    """Read a group of losses; None if the run has none."""
    location = results_location(run)
    attributes = read_attributes(location, group)
    if attributes is None:
        return None
    sizes: dict[str, int] = {}
    for name, dims in VARIABLES[group].items():
        shape = read_metadata(location, f"{group}/{name}").get("shape", ())
        for dim, length in zip(dims, shape, strict=False):
            is_valid = type(length) is int and 0 < length <= MAX_LENGTH
            sizes.setdefault(dim, length if is_valid else 0)
    expected = {
        name: ExpectedArray(tuple(sizes.get(dim, 0) for dim in dims))
        for name, dims in VARIABLES[group].items()
    }
    arrays = open_arrays(location, group, expected)
    if arrays is None:
        return None
    values = {
        name: (dims, np.asarray(arrays[name][:]))
        for name, dims in VARIABLES[group].items()
    }
    data = xr.Dataset(values).set_coords(
        [name for name in ("epoch", "fraction", "first", "second") if name in values]
    )
    if group == PLANE:
        apart = abs(data["point_loss"] - data["projected_loss"])
        data.attrs["projection_error"] = float(apart.max())
    return data


def _lines(found: xr.Dataset) -> Table:
    """Return a table of losses at the iterates, halfway and at the target."""
    table = make_table("epoch", "at the iterate", "largest", "at x*")
    for i, epoch in enumerate(found["epoch"].values):
        line = found["loss"].values[i]
        table.add_row(
            f"{epoch:.0f}", f"{line[0]:.4g}", f"{line.max():.4g}", f"{line[-1]:.4g}"
        )
    return table


def _plane_note(found: xr.Dataset) -> str:
    share = float(found["explained_variance_ratio"].sum())
    return (
        f"The plane shows {share:.1%} of the variance of the stored iterates. Losses of "
        "iterates and of their projections onto the plane differ by up to "
        f"{found.attrs['projection_error']:.3g}."
    )
