"""Sub-commands that analyse the zigzag geometry of a run, and of its branches."""

from typing import TYPE_CHECKING

from rich.table import Table
from tyro.conf import Positional

import analyzers
import trajstore
from analyzers._reporting import MAX_ROWS, TERMINAL, Drawn, Output, make_table, report
from analyzers.gradients.defaults import THRESHOLD, WINDOW
from trajstore import reading

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr


GROUP = "zigzag-scales"
"""Name of the group and of the figure that compare branches."""


def zigzag(
    store: Positional[str],
    *,
    layers: bool = False,
    window: int = WINDOW,
    threshold: float = THRESHOLD,
    loss: str = "loss",
    smoothing: int | None = None,
    output: Output = TERMINAL,
) -> None:
    """Find where a run zigzags, from the cosines of adjacent gradients.

    Prints which shares of the steps, of the path and of the decrease of the loss belong to
    zigzag, smooth and other segments. A second table has the zigzag shares for several
    thresholds and windows. Results go to RUN.analysis.zarr and figures to RUN.figures, both
    next to the store; figures of a remote store go to the working directory.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    layers : bool, default: False
        Also compare each parameter tensor separately.
    window : int, default: 11
        Number of steps in the running median of the cosines, odd.
    threshold : float, default: 0.5
        Steps zigzag where the running median is below minus this number, and are smooth
        where it is above this number.
    loss : str, default: loss
        Scalar whose decrease is attributed to segments, or "none" to skip this.
    smoothing : int, optional
        Number of steps in the running mean of the loss, odd. Default: 1 if the recording
        says that every step uses all data, else 11.
    output : Output
        Where results, tables and figures go.
    """
    run = trajstore.open_run(store)
    scalar = None if loss == "none" else loss
    segments = analyzers.zigzag_segments(
        run, window=window, threshold=threshold, loss=scalar, smoothing=smoothing
    )
    windows = sorted({1, window, 5 * window if window > 1 else 11})
    dependence = analyzers.zigzag_shares(
        run, windows=windows, loss=scalar, smoothing=smoothing
    )
    curve = analyzers.lag_curve(run)
    groups = {
        "zigzag-segments": segments,
        "zigzag-shares": dependence,
        "zigzag-lags": curve,
    }
    tables = [_share_table(segments), _dependence_table(dependence)]
    figures: dict[str, Callable[[], Drawn]] = {
        "zigzag": lambda: analyzers.plots.zigzag(segments, curve)
    }
    if layers:
        by_layer = analyzers.zigzag_layers(run, window=window, threshold=threshold)
        groups["zigzag-layers"] = by_layer
        groups["zigzag"] = analyzers.zigzag(run, layers=True).compute()
        tables.append(_layer_table(by_layer))
        figures["zigzag-layers"] = lambda: analyzers.plots.zigzag_layers(by_layer)
    for group, result in groups.items():
        reading.write_results(run, group, result)
    report(
        run,
        *tables,
        data=segments,
        drawn_from=[*groups.values()],
        figures=figures,
        output=output,
        groups=[*groups],
        name="segments",
        example="segments.running_cosine.values",
    )


def compare_branches(
    parent: Positional[str],
    branches: Positional[tuple[str, ...]],
    *,
    window: int = WINDOW,
    threshold: float = THRESHOLD,
    loss: str = "loss",
    length: float | None = None,
    output: Output = TERMINAL,
) -> None:
    """Compare the zigzags of a run and of its branches, which have other learning rates.

    Results go to RUN.analysis.zarr and the figure to RUN.figures, both next to the parent.

    Parameters
    ----------
    parent : str
        Path or URL of the run that the branches start from.
    branches : tuple of str
        Paths or URLs of branches that traj-train branch recorded, all starting from the
        same epoch.
    window : int, default: 11
        Number of steps in the running median of the cosines, odd.
    threshold : float, default: 0.5
        Steps zigzag where the running median is below minus this number, and are smooth
        where it is above this number.
    loss : str, default: loss
        Scalar whose decrease is attributed to segments, or "none" to skip this.
    length : float, optional
        Stop after this path length, to compare paths of equal length.
    output : Output
        Where results, tables and figures go.
    """
    run = trajstore.open_run(parent)
    compared = analyzers.compare_branches(
        run,
        [trajstore.open_run(branch) for branch in branches],
        window=window,
        threshold=threshold,
        loss=None if loss == "none" else loss,
        length=length,
    )
    reading.write_results(run, GROUP, compared)
    report(
        run,
        _branch_table(compared),
        data=compared,
        figures={GROUP: lambda: analyzers.plots.compare_branches(compared)},
        output=output,
        groups=[GROUP],
        name="branches",
        example="branches.step_share.values",
    )


def _share_table(segments: "xr.Dataset") -> Table:
    """Lay out the shares of each kind of segment in at most 80 columns."""
    headers = ["", "segments", "steps", "path", "displacement²"]
    with_loss = "decrease" in segments
    headers += ["loss decrease", "share"] if with_loss else []
    table = make_table(*headers, text=[""])
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


def _dependence_table(dependence: "xr.Dataset") -> Table:
    """Lay out the shares of zigzag by threshold and window."""
    zigzag_only = dependence.sel(kind="zigzag")
    thresholds = [f"{t:g}" for t in dependence["threshold"].values]
    header = "zigzag by threshold"
    table = make_table(header, "window", *thresholds, text=[header])
    names = {"step_share": "steps", "path_share": "path", "decrease_share": "decrease"}
    for name, label in names.items():
        if name not in zigzag_only:
            continue
        for i, window in enumerate(dependence["window"].values):
            row = zigzag_only[name].isel(window=i).values
            shares = [f"{share:.0%}" for share in row]
            table.add_row("" if i else label, str(window), *shares)
    return table


def _layer_table(by_layer: "xr.Dataset") -> Table:
    kinds = by_layer["kind"].values
    table = make_table("tensor", "mean cosine", *kinds, text=["tensor"])
    shown = by_layer.isel(layer=slice(MAX_ROWS))
    for name in shown["layer"].values:
        layer = shown.sel(layer=name)
        share = [f"{value:.0%}" for value in layer["step_share"].values]
        table.add_row(str(name), f"{float(layer['mean_cosine']):.3f}", *share)
    if by_layer.sizes["layer"] > MAX_ROWS:
        table.caption = f"The first {MAX_ROWS} of {by_layer.sizes['layer']} tensors."
    return table


def _branch_table(compared: "xr.Dataset") -> Table:
    """Lay out the shares of zigzag in each branch in at most 80 columns."""
    headers = ["lr x", "steps", "length", "zigzag", "smooth", "path, zigzag"]
    with_loss = "decrease" in compared
    headers += ["loss decrease", "in zigzag"] if with_loss else []
    table = make_table(*headers, text=["lr x"])
    for i in range(compared.sizes["branch"]):
        branch = compared.isel(branch=i)
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


def _numbers(dataset: "xr.Dataset") -> dict[str, float]:
    return {str(name): float(variable) for name, variable in dataset.items()}


def _percent(row: dict[str, float], name: str) -> str:
    if row["step_share"] == 0:
        return "-"
    return f"{row[name]:.1%} ±{row[f'{name}_stderr']:.1%}"
