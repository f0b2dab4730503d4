"""Sub-command that draws the losses along a path."""

from functools import partial
from typing import TYPE_CHECKING, Final

from rich.table import Table
from tyro.conf import Positional

import analyzers
import trajstore
from analyzers import comparison
from analyzers._reporting import TERMINAL, Drawn, Output, make_table, report
from trajstore.format.attrs import LINES, PLANE

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr

    from trajstore.reading.run import Run

GROUPS: Final = (LINES, PLANE)


def losses(store: Positional[str], *, output: Output = TERMINAL) -> None:
    """Draw the losses on lines to a target and on the plane of a path.

    Needs losses that traj-train replay RUN --lines or --plane 15 has evaluated. Figures go to
    RUN.figures, next to the store.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    output : Output
        Where tables and figures go.
    """
    run = trajstore.open_run(store)
    found = _found(run, store)
    path = analyzers.path_pca(run).compute() if PLANE in found else None
    figures: dict[str, Callable[[], Drawn]] = {}
    parts: list[Table | str] = []
    if LINES in found:
        figures[LINES] = partial(analyzers.plots.losses_towards, found[LINES])
        parts.append(_lines(found[LINES]))
    if PLANE in found:
        figures[PLANE] = partial(analyzers.plots.losses_on_plane, found[PLANE], path)
        parts.append(_plane_note(found[PLANE]))
    first, *others = found.values()
    report(
        run,
        *parts,
        data=first,
        drawn_from=others if path is None else [*others, path],
        figures=figures,
        output=output,
        groups=[*found],
        name="losses",
        example="losses.loss.values",
    )


def _found(run: "Run", store: str) -> "dict[str, xr.Dataset]":
    """Return the losses next to a run, by group; raise a FileNotFoundError without any."""
    found = {
        group: data
        for group in GROUPS
        if (data := comparison.read_losses(run, group)) is not None
    }
    if not found:
        raise FileNotFoundError(
            f"There are no losses along the path next to {store}. Evaluate them with "
            f"traj-train replay {store} --lines --plane 15."
        )
    return found


def _lines(found: "xr.Dataset") -> Table:
    """Return a table of losses at the iterates, halfway and at the target."""
    table = make_table("epoch", "at the iterate", "largest", "at x*")
    for i, epoch in enumerate(found["epoch"].values):
        line = found["loss"].values[i]
        table.add_row(
            f"{epoch:.0f}", f"{line[0]:.4g}", f"{line.max():.4g}", f"{line[-1]:.4g}"
        )
    return table


def _plane_note(found: "xr.Dataset") -> str:
    share = float(found["explained_variance_ratio"].sum())
    return (
        f"The plane shows {share:.1%} of the variance of the stored iterates. Losses of "
        "iterates and of their projections onto the plane differ by up to "
        f"{found.attrs['projection_error']:.3g}."
    )
