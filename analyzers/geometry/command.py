"""Sub-command that measures RSI, EB and gamma of a run."""

from functools import partial
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from tyro.conf import Positional

import analyzers
import trajstore
from analyzers import _execution
from analyzers import geometry as this
from analyzers._reporting import (
    TERMINAL,
    Drawn,
    Opened,
    Output,
    decimals_of,
    make_table,
    say,
    shown_rows,
    value_and_error,
    with_error,
)
from analyzers._reporting import report as print_report
from trajstore.format.attrs import uses_all_data
from trajstore.reading.ranges import as_ranges

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt
    import xarray as xr

    from trajstore.reading.run import Run


MAX_LAYERS = 20
"""Largest number of layers in a table; of more, those of the largest and smallest gamma."""

MAX_NAME = 36
"""Longest name of a layer in a table, in characters; the end of a longer one is shown."""


def geometry(
    store: Positional[str],
    *,
    reference: str = "final",
    layers: bool = False,
    measurement: str | None = None,
    weight_decay: float = 0.0,
    scheduler: str | None = None,
    workers: int | None = None,
    dashboard: bool = False,
    report: Path | None = None,
    output: Output = TERMINAL,
) -> None:
    """Measure RSI, EB and gamma of every step, with error bars, relative to a target.

    Prints a table by epoch, or by ranges of steps if the run has one epoch, and with --layers
    another one by layer. Results go to RUN.analysis.zarr and figures to RUN.figures, both next
    to the store; figures of a remote store go to the working directory. Results that are already
    stored are not computed again.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    reference : str, default: "final"
        The target: final, the name of a snapshot, the number of an epoch, step:4500 for
        the anchor of the window that starts there, mean:10:20 for the mean of the iterates at the starts of epochs 10 to 20, or the path or URL of
        another store, for its final iterate; or a .npz, .pt or .pth file of tensors by
        name, such as torch.save(model.state_dict(), path) writes.
    layers : bool, default: False
        Also measure each parameter tensor separately, and print gamma of each, mid-run.
    measurement : str, optional
        Measure the gradients of this measurement instead of the gradients of steps; the
        name update selects the updates of steps, if they were recorded.
    weight_decay : float, default: 0.0
        Add this multiple of the parameters to the gradients.
    scheduler : str, optional
        Compute on the running Dask scheduler at this address, such as tcp://host:8786.
    workers : int, optional
        Compute in this number of processes on this machine, instead of threads.
    dashboard : bool, default: False
        Compute in processes on this machine, and print the link to Dask's dashboard.
    report : Path, optional
        Write Dask's performance report to this HTML file.
    output : Output
        Where results, tables and figures go.
    """
    run = trajstore.open_run(store)
    target = this.read_reference(reference, run)
    measured = run if measurement is None else run.measured(measurement)
    compute = partial(
        analyzers.store_geometry, measured, reference=target, weight_decay=weight_decay
    )
    with _execution.connected(
        scheduler=scheduler, workers=workers, dashboard=dashboard, report=report
    ) as client:
        if client is not None:
            say(f"Dashboard: {client.dashboard_link}", stderr=True)
        whole = compute()
        by_layer = compute(layers=True) if layers else None
    name = this.result_group(whole)
    means = _execution.load(this.means_for_tables(whole))
    shown = [means]
    figures: dict[str, Callable[[], Drawn]] = {
        name: lambda: analyzers.plots.path_geometry(means)
    }
    more: list[Opened] = []
    also: dict[str, xr.Dataset] = {}
    of_layers: list[Table | str] = []
    if by_layer is not None:
        by_epoch = _execution.load(this.means_for_tables(by_layer))
        figures[f"{name}-layers"] = lambda: analyzers.plots.layer_means(by_epoch)
        also["layers"] = by_epoch
        example = f"analyzers.{_function(means)}(layers).gamma.to_pandas()"
        more.append(Opened(f"{name}-layers", "layers", example))
        of_layers = _layer_parts(run, by_epoch)
    print_report(
        run,
        _direction(whole),
        _table(means),
        *_errors(means),
        _mid_run_line(means),
        _walk_line(run, whole, means),
        *of_layers,
        _missing(means),
        _imprecise(means),
        _planned(run),
        _status(run),
        data=means,
        drawn_from=shown,
        figures=figures,
        output=output,
        groups=[*figures],
        name="geometry",
        example=_example(means),
        more=more,
        also=also,
    )


def _function(means: "xr.Dataset") -> str:
    """Return the name of the function that made the means."""
    return "epoch_means" if this.time_of(means) == "epoch" else "range_means"


def _example(means: "xr.Dataset") -> str:
    """Return the line of Python that shows the means of the table."""
    columns = '[["gamma", "gamma_stderr"]]'
    return f"analyzers.{_function(means)}(geometry){columns}.to_dataframe()"


def _mid_run_line(means: "xr.Dataset") -> str:
    """Return the summary of the middle half of the run, in words."""
    found = analyzers.mid_run(means)
    shown = {
        name: value_and_error(float(found[name]), float(found[f"{name}_stderr"]))
        for name in ("gamma", "rsi", "eb", "lolr", "distance")
    }
    half = "the middle half"
    if "reference_epoch" in means.attrs:
        half += " of the steps before the target, if there are any"
    return (
        f"Mid-run ({half}): gamma {shown['gamma']} (mean); RSI {shown['rsi']}, "
        f"EB {shown['eb']}, loLR {shown['lolr']}, distance {shown['distance']} (medians). "
        "± is the error of the estimates, not of another seed."
    )


def _walk_line(run: "Run", whole: "xr.Dataset", means: "xr.Dataset") -> str:
    """Compare gamma mid-run with that of a walk, if steps of the run lead to the target."""
    reference = str(whole.attrs["reference"])
    kind, _, number = reference.partition(" ")
    leads = kind == "epoch" and number.isdecimal() and int(number) > 0
    leads |= reference == "final"
    if not leads or whole.attrs["direction"] != "gradient":
        return ""
    if uses_all_data(run.attrs):
        # A walk is the null model of noise.
        return ""
    excess = this.means_for_tables(this.subtract_null(whole, run))
    gamma = float(analyzers.mid_run(means)["gamma"])
    walk = gamma - float(analyzers.mid_run(_execution.load(excess))["excess"])
    if not walk > 0:
        return ""
    told = ", more than half of it" if walk > gamma / 2 else ""
    told = ", which is larger" if walk > gamma else told
    if optimizer := this.other_updates(run):
        return (
            "What would gamma be without a loss? Record a walk through the same optimizer, "
            f"{optimizer} with the same settings, driven by trajstore.evaluation.noise_gradients, and "
            "subtract it: "
            "analyzers.excess_gamma(geometry, run, null=...). The walk of plain SGD with the same step "
            f"lengths has gamma {walk:.3g} mid-run{told}; it is no null model of this run."
        )
    hint = (
        ""
        if run.stored.document.optimizer
        else " For other optimizers than plain SGD, record a walk through the optimizer."
    )
    return (
        f"A random walk with the same step lengths has gamma {walk:.3g} mid-run{told}: "
        f"analyzers.excess_gamma subtracts it.{hint}"
    )


def _layer_parts(run: "Run", by_epoch: "xr.Dataset") -> "list[Table | str]":
    """Return a table of gamma by layer, mid-run, and what it leaves out."""
    found = analyzers.mid_run(by_epoch)
    gamma, stderr = found["gamma"].values, found["gamma_stderr"].values
    distance, apart = found["distance"].values, found["distance_stderr"].values
    rows = list(range(len(gamma)))
    title = "Layers, mid-run:"
    if len(rows) > MAX_LAYERS:
        # Gamma is a cosine: a standard error above 1 tells nothing.
        known = sorted(
            (i for i in rows if stderr[i] <= 1), key=lambda i: gamma[i], reverse=True
        )
        half = MAX_LAYERS // 2
        rows = [*known[:half], *known[-half:]] if len(known) > MAX_LAYERS else known
        title = (
            f"Layers with the {half} largest and the {half} smallest gamma of {len(gamma)}, "
            "mid-run:"
        )
    table = make_table("layer", "parameters", "gamma", "distance", text=["layer"])
    for i in rows:
        name = str(by_epoch["layer"].values[i])
        table.add_row(
            name if len(name) <= MAX_NAME else f"...{name[3 - MAX_NAME :]}",
            f"{run.layout.sizes[i]:,}",
            with_error(gamma[i], stderr[i], 4) if stderr[i] <= 1 else "unknown",
            value_and_error(distance[i], apart[i]),
        )
    unknown = int((~(stderr <= 1)).sum())
    note = (
        f"Layers without a known gamma: {unknown}. Its standard error is above 1, or the gradient "
        "is 0, as it nearly is for biases before a normalisation."
    )
    return [title, table, note if unknown else ""]


def _table(means: "xr.Dataset") -> Table:
    """Lay out the means in at most 80 columns."""
    dim = this.time_of(means)
    title = "epoch" if dim == "epoch" else "steps"
    table = make_table(title, "gamma", "min", "max", "RSI", "EB", "loLR", "distance")
    rows = shown_rows(means.sizes[dim])
    decimals = decimals_of(means["gamma_stderr"].values)
    for i in rows:
        row = {name: variable.item() for name, variable in means.isel({dim: i}).items()}
        table.add_row(
            this.label_of(means, i),
            with_error(row["gamma"], row["gamma_stderr"], decimals)
            if row["gamma_stderr"] <= 1
            else "unknown",
            f"{row['gamma_min']:.3f}",
            f"{row['gamma_max']:.3f}",
            f"{row['rsi']:.3g}",
            f"{row['eb']:.3g}",
            f"{row['lolr']:.3g}",
            f"{row['distance']:.3g}",
        )
    if rows.step > 1:
        table.caption = f"One of every {rows.step} epochs is shown."
    return table


def _errors(means: "xr.Dataset") -> "list[Table | str]":
    """Lay out the errors of quantities other than gamma, in percent; nothing if all are 0."""
    names = {"rsi": "RSI", "eb": "EB", "lolr": "loLR", "distance": "distance"}
    stderr = [means[f"{name}_stderr"].values for name in names]
    if not any((each > 0).any() for each in stderr):
        return []
    dim = this.time_of(means)
    table = make_table("epoch" if dim == "epoch" else "steps", *names.values())
    for i in shown_rows(means.sizes[dim]):
        values = [float(means[name].values[i]) for name in names]
        errors = [float(each[i]) for each in stderr]
        cells = [
            _percent(value, error) for value, error in zip(values, errors, strict=True)
        ]
        table.add_row(this.label_of(means, i), *cells)
    return ["Standard errors of these means, in percent of them:", table]


def _percent(value: float, error: float) -> str:
    """Return an error in percent of a value."""
    share = abs(error / value) if value else nan
    if isnan(share):
        return "unknown"
    return f"{100 * share:.2g}" if share <= 1 else "> 100"


def _labels(means: "xr.Dataset", chosen: "npt.NDArray[np.bool_]") -> str:
    """Return the chosen epochs, or ranges of steps, in words."""
    if this.time_of(means) == "epoch":
        epochs = means["epoch"].values[chosen].tolist()
        return f"{'epochs' if len(epochs) > 1 else 'epoch'} {as_ranges(epochs)}"
    return (
        f"steps {', '.join(this.label_of(means, int(i)) for i in chosen.nonzero()[0])}"
    )


def _direction(geometry: "xr.Dataset") -> str:
    direction = geometry.attrs["direction"]
    return "" if direction == "gradient" else f"Instead of the gradient: {direction}."


def _missing(means: "xr.Dataset") -> str:
    missing = means["n_missing"]
    if not (total := int(missing.sum())):
        return ""
    return (
        f"Steps without a value: {total}, in {_labels(means, missing.values > 0)}. The gradient or the "
        "parameters were not finite, a norm was 0 (as at the target itself), or a chunk is "
        "damaged (see traj-store verify). The means leave these steps out."
    )


def _imprecise(means: "xr.Dataset") -> str:
    """Return a sentence that names the epochs in which gamma is unknown."""
    # Gamma is a cosine: a standard error above 1 tells nothing.
    unknown = means["gamma_stderr"].values > 1
    if not unknown.any():
        return ""
    return (
        f"Gamma is unknown in {_labels(means, unknown)}: its standard error is above 1. "
        "This happens in the last epoch if the learning rate decays and the recorder was "
        "not given `total_steps`."
    )


def _planned(run: "Run") -> str:
    """Return a sentence about a number of steps that was not reached, at the cost of precision."""
    planned = run.spec.total_steps
    if planned is None or run.n_steps >= planned or run.status != "complete":
        return ""
    return (
        f"The recorder was given total_steps={planned:,}, and {run.n_steps:,} steps were recorded. "
        "The results are valid, but windows are shortened at the planned end only: the last epochs are "
        "as imprecise as without total_steps. Give the true number next time, if it is known."
    )


def _status(run: "Run") -> str:
    if run.status == "complete":
        return ""
    return (
        f"The run is {run.status}; the results cover its {run.n_steps} recorded steps."
    )
