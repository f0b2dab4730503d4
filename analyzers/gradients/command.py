"""Sub-commands on zigzag geometry: of a run, and of a run and its branches."""

import os

import matplotlib as mpl
import matplotlib.pyplot as plt
import xarray as xr
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from analyzers._reporting import figures_directory, say, say_how_to_open
from analyzers.gradients import plots
from analyzers.gradients.branches import scales as compare_scales
from analyzers.gradients.lag_curve import lag_curve
from analyzers.gradients.layers import zigzag_layers
from analyzers.gradients.segments import (
    THRESHOLD,
    WINDOW,
    zigzag_segments,
    zigzag_shares,
)
from analyzers.gradients.zigzag import zigzag as adjacent_cosines
from trajstore.reading.results import results_location, write_results
from trajstore.reading.run import open_run

MAX_ROWS = 40
"""Longest table of tensors; the rest is in the results."""


def zigzag(
    store: Positional[str],
    *,
    layers: bool = False,
    window: int = WINDOW,
    threshold: float = THRESHOLD,
    loss: str = "loss",
    smoothing: int | None = None,
) -> None:
    """Cosines of adjacent gradients: where a run zigzags, and what it achieves there.

    Prints what zigzag, smooth and other segments have of steps, path and decrease of the
    loss, and how that depends on the criterion. Results go to RUN.analysis.zarr and
    figures to RUN.figures, both beside the store; figures of a remote store go to the
    working directory.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    layers : bool, default: False
        Also tell the parameter tensors apart.
    window : int, default: 11
        Steps of the running median that decides, an odd number.
    threshold : float, default: 0.5
        A median below minus this zigzags, one above it is smooth.
    loss : str, default: loss
        Name of the scalar whose decrease is shared out; none for none.
    smoothing : int, optional
        Steps of the running mean of the loss, an odd number. Default: 1 for a run of
        traj-train with full batches, else 11.
    """
    mpl.use("agg")
    run = open_run(store)
    of_loss = None if loss == "none" else loss
    segments = zigzag_segments(
        run, window=window, threshold=threshold, loss=of_loss, smoothing=smoothing
    )
    windows = sorted({1, window, 5 * window if window > 1 else 11})
    dependence = zigzag_shares(run, windows=windows, loss=of_loss, smoothing=smoothing)
    curve = lag_curve(run)
    groups = {
        "zigzag-segments": segments,
        "zigzag-shares": dependence,
        "zigzag-lags": curve,
    }
    console, figures = Console(), figures_directory(run)
    console.print(_share_table(segments))
    console.print()
    console.print(_dependence_table(dependence))
    plots.zigzag_overview(segments, curve).savefig(figures / "zigzag.png", dpi=150)
    if layers:
        by_layer = zigzag_layers(run, window=window, threshold=threshold)
        groups["zigzag-layers"] = by_layer
        groups["zigzag"] = adjacent_cosines(run, layers=True).compute()
        console.print()
        console.print(_layer_table(by_layer))
        plots.layer_cosines(by_layer)
        plt.savefig(figures / "zigzag-layers.png", dpi=150)
    plt.close("all")
    for name, found in groups.items():
        write_results(run, name, found)
    say(f"\nFigures: {figures}{os.sep}\nResults: {results_location(run)}")
    say(f"Groups: {', '.join(groups)}")
    say_how_to_open(
        run, "zigzag-segments", "segments", "segments.running_cosine.values"
    )


def scales(
    parent: Positional[str],
    branches: Positional[tuple[str, ...]],
    *,
    window: int = WINDOW,
    threshold: float = THRESHOLD,
    loss: str = "loss",
    length: float | None = None,
) -> None:
    """Zigzag at several scales: a run beside its branches with other learning rates.

    Results go to RUN.analysis.zarr and the figure to RUN.figures, both beside the parent.

    Parameters
    ----------
    parent : str
        Path or URL of the run that the branches began in.
    branches : tuple of str
        Those of traj-train branch, from one epoch.
    window : int, default: 11
        Steps of the running median that decides, an odd number.
    threshold : float, default: 0.5
        A median below minus this zigzags, one above it is smooth.
    loss : str, default: loss
        Name of the scalar whose decrease is shared out; none for none.
    length : float, optional
        Go only so far along each path, to compare paths that are equally long.
    """
    mpl.use("agg")
    run = open_run(parent)
    found = compare_scales(
        run,
        [open_run(branch) for branch in branches],
        window=window,
        threshold=threshold,
        loss=None if loss == "none" else loss,
        length=length,
    )
    write_results(run, "zigzag-scales", found)
    figures = figures_directory(run)
    plots.scale_figure(found).savefig(figures / "zigzag-scales.png", dpi=150)
    plt.close("all")
    Console().print(_scale_table(found))
    say(f"\nFigures: {figures}{os.sep}\nResults: {results_location(run)}")
    say("Groups: zigzag-scales")
    say_how_to_open(run, "zigzag-scales", "scales", "scales.step_share.values")


def _share_table(segments: xr.Dataset) -> Table:
    """Lay out what every kind has, in at most 80 columns."""
    headers = ["", "segments", "steps", "path", "displacement²"]
    with_loss = "decrease" in segments
    table = _table([*headers, "loss decrease", "share"] if with_loss else headers)
    by_kind = segments[[n for n, v in segments.items() if v.dims == ("kind",)]]
    for kind in by_kind["kind"].values:
        row = _numbers(by_kind.sel(kind=kind))
        cells = [
            str(kind),
            f"{row['n_segments']:.0f}",
            f"{row['step_share']:.1%}",
            f"{row['path_share']:.1%}",
            _percent(row, "displacement_share"),
        ]
        if with_loss:
            decrease = f"{row['decrease']:.3g} ±{row['decrease_stderr']:.1g}"
            decrease = decrease if row["step_share"] else "-"
            cells += [decrease, _percent(row, "decrease_share")]
        table.add_row(*cells)
    return table


def _dependence_table(dependence: xr.Dataset) -> Table:
    """Lay out the share of zigzag by threshold and window."""
    zigzag_only = dependence.sel(kind="zigzag")
    thresholds = [f"{t:g}" for t in dependence["threshold"].values]
    table = _table(["zigzag by threshold", "window", *thresholds])
    names = {"step_share": "steps", "path_share": "path", "decrease_share": "decrease"}
    for name, label in names.items():
        if name not in zigzag_only:
            continue
        for i, window in enumerate(dependence["window"].values):
            row = zigzag_only[name].isel(window=i).values
            shares = [f"{share:.0%}" for share in row]
            table.add_row("" if i else label, str(window), *shares)
    return table


def _layer_table(by_layer: xr.Dataset) -> Table:
    table = _table(["tensor", "mean cosine", *by_layer["kind"].values])
    shown = by_layer.isel(layer=slice(MAX_ROWS))
    for name in shown["layer"].values:
        tensor = shown.sel(layer=name)
        share = [f"{value:.0%}" for value in tensor["step_share"].values]
        label = str(name) if len(str(name)) <= 40 else f"...{str(name)[-37:]}"
        table.add_row(label, f"{float(tensor['mean_cosine']):.3f}", *share)
    if by_layer.sizes["layer"] > MAX_ROWS:
        table.caption = f"The first {MAX_ROWS} of {by_layer.sizes['layer']} tensors."
    return table


def _scale_table(found: xr.Dataset) -> Table:
    """Lay out the shares of zigzag at every scale, in at most 80 columns."""
    headers = ["lr x", "steps", "length", "zigzag", "smooth", "path, zigzag"]
    with_loss = "decrease" in found
    table = _table([*headers, "loss decrease", "in zigzag"] if with_loss else headers)
    for i in range(found.sizes["branch"]):
        branch = found.isel(branch=i)
        row = _numbers(branch.sel(kind="zigzag").drop_dims(["part", "cosine_bin"]))
        cells = [
            f"{float(branch['lr_scale']):g}" if i else "parent",
            f"{row['n_steps']:.0f}",
            f"{row['path_length']:.3g}",
            f"{row['step_share']:.1%}",
            f"{float(branch['step_share'].sel(kind='smooth')):.1%}",
            f"{row['path_share']:.1%}",
        ]
        if with_loss:
            total = float(branch["decrease"].sum())
            cells += [f"{total:.3g}", _percent(row, "decrease_share")]
        table.add_row(*cells)
    return table


def _table(headers: list[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, header in enumerate(headers):
        table.add_column(header, justify="right" if i else "left", no_wrap=True)
    return table


def _numbers(dataset: xr.Dataset) -> dict[str, float]:
    return {str(name): float(variable) for name, variable in dataset.items()}


def _percent(row: dict[str, float], name: str) -> str:
    if row["step_share"] == 0:
        return "-"
    return f"{row[name]:.1%} ±{row[f'{name}_stderr']:.1%}"
