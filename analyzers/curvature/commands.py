"""Commands for the edge of stability, smoothness, convexity and scale invariance."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.table import Table
from tyro.conf import Positional

import analyzers
import trajstore
from analyzers import _execution, curvature, geometry
from analyzers._reporting import TERMINAL, Output, make_table, report, spans
from analyzers.curvature.defaults import TOLERANCE
from trajstore.format.attrs import SAME_BATCH, uses_all_data

if TYPE_CHECKING:
    import xarray as xr

    from trajstore.reading.run import Run


def edge_of_stability(
    store: Positional[str],
    *,
    optimizer: Literal["sgd", "nesterov", "adam"] | None = None,
    momentum: float | None = None,
    output: Output = TERMINAL,
) -> None:
    """Ratio of the largest Hessian eigenvalue to the stability threshold of the optimizer.

    Needs a run with logged sharpness: train with traj-train run NAME --sharpness-every 10,
    or call recorder.log(sharpness=...) in your own loop. Prints a table by step. Writes
    results to RUN.analysis.zarr and a figure to RUN.figures, both next to the store.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    optimizer : str, optional
        Optimizer of the run: sgd, nesterov or adam. Default: from the settings of the run.
    momentum : float, optional
        Momentum; for Adam, the first beta. Default: from the settings of the run.
    output : Output
        Where results, tables and figures go.
    """
    run = trajstore.open_run(store)
    lazy = analyzers.edge_of_stability(run, optimizer=optimizer, momentum=momentum)
    found = _execution.store_result(run, "sharpness", lazy)
    report(
        run,
        _ratios(found),
        _threshold_note(found),
        data=found,
        figures={"sharpness": lambda: analyzers.plots.edge_of_stability(found)},
        output=output,
        groups=["sharpness"],
        name="edge",
        example="edge.ratio.values",
    )


def _ratios(found: "xr.Dataset") -> Table:
    """Return a table of the last evaluation of the sharpness in each span of evaluations."""
    sharpness = found.attrs["recorded_as"].replace("_", " ")
    table = make_table("step", "epoch", sharpness, "threshold", "ratio")
    for span in spans(found.sizes["step"]):
        row = found.isel(step=span.stop - 1)
        table.add_row(
            str(row["step"].item()),
            str(row["epoch"].item()),
            *(f"{row[name].item():.4g}" for name in ("sharpness", "threshold")),
            f"{row['ratio'].item():.3f}",
        )
    return table


def _threshold_note(found: "xr.Dataset") -> str:
    reached = float(found["reached"])
    if not np.isfinite(reached):
        largest = float(found["ratio"].max())
        return f"The threshold is not reached: the largest ratio is {largest:.3f}."
    n = int((found["step"] >= reached).sum())
    low, middle, high = (
        float(found[f"ratio_{name}"]) for name in ("min", "median", "max")
    )
    return (
        f"The threshold is reached at step {reached:.0f}. Over the {n} evaluations from "
        f"that step on, the median ratio is {middle:.3f} and the range {low:.3f} to "
        f"{high:.3f}; {100 * float(found['share_near']):.0f} % of the ratios are within "
        "10 % of 1."
    )


def smoothness(
    store: Positional[str],
    *,
    measurement: str | None = None,
    layers: bool = False,
    full_batch: bool = False,
    output: Output = TERMINAL,
) -> None:
    """Change of the gradient divided by the change of the parameters, by step.

    Also compares gradients of the same examples before and after a step if the run has
    them: train with traj-train run NAME --same-batch-every 10, or call
    recorder.measure("same_batch") in your own loop. Prints medians over spans of steps.
    Writes results to RUN.analysis.zarr and a figure to RUN.figures, both next to the store.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    measurement : str, optional
        Name of the measurement that repeats the examples of a step. Default: same_batch, if
        recorded.
    layers : bool, default: False
        Also print the median of every layer.
    full_batch : bool, default: False
        Say that every step uses all data, if the recording does not say so: smoothness is
        then that of the whole loss.
    output : Output
        Where results, tables and figures go.
    """
    run = trajstore.open_run(store)
    if measurement is None and SAME_BATCH in run.measurements:
        measurement = SAME_BATCH
    groups = ["smoothness"]
    found = {
        "next step": _execution.store_result(run, groups[0], analyzers.smoothness(run))
    }
    if measurement is not None:
        groups.append(f"smoothness-{measurement}")
        same = analyzers.smoothness(run, measurement=measurement)
        found["same batch"] = _execution.store_result(run, groups[-1], same)
    by_layer: Table | str = ""
    if layers:
        groups.append("smoothness-layers")
        split = analyzers.smoothness(run, measurement=measurement, layers=True)
        by_layer = _medians_by_layer(_execution.store_result(run, groups[-1], split))
    name = Path(run.location).stem
    report(
        run,
        _medians(found, run.n_steps),
        _examples_note(run, measurement, full_batch=full_batch),
        by_layer,
        data=found["next step"],
        drawn_from=[*found.values()],
        figures={"smoothness": lambda: curvature.smoothness_figure(found, name)},
        output=output,
        groups=groups,
        name="along",
        example="along.smoothness.median().values",
    )


def _medians(found: "dict[str, xr.Dataset]", n_steps: int) -> Table:
    """Return a table of medians over spans of steps."""
    quantities = ("smoothness", "curvature")
    headers = [f"{name},\n{label}" for label in found for name in quantities]
    table = make_table("steps", *headers, text=["steps"])
    for span in spans(n_steps):
        values = [
            _median(data[name], span) for data in found.values() for name in quantities
        ]
        table.add_row(f"{span.start} to {span.stop - 1}", *values)
    return table


def _median(values: "xr.DataArray", span: slice) -> str:
    step = values["step"]
    # A value belongs to the step of the later gradient.
    in_span = values.values[((step > span.start) & (step <= span.stop)).values]
    known = in_span[np.isfinite(in_span)]
    return f"{np.median(known):.4g}" if len(known) else "-"


def _medians_by_layer(found: "xr.Dataset") -> Table:
    table = make_table("tensor", "median smoothness", text=["tensor"])
    medians = found["smoothness"].median("step")
    for name, value in zip(found["layer"].values, medians.values, strict=True):
        table.add_row(str(name), f"{value:.4g}")
    return table


def _examples_note(run: "Run", measurement: str | None, *, full_batch: bool) -> str:
    if measurement is not None or full_batch or uses_all_data(run.attrs):
        return ""
    return (
        "Unless every step uses all data (say so with --full-batch), these gradients come "
        "from different examples; for gradients of the same examples, train with "
        "--same-batch-every."
    )


def convexity(
    store: Positional[str],
    *,
    reference: str = "final",
    reference_loss: float | None = None,
    measurement: str | None = None,
    full_batch: bool = False,
    output: Output = TERMINAL,
) -> None:
    """Slack of convexity: the loss at the target minus the tangents at the iterates.

    If every step uses all data, also compares neighbouring iterates. Prints a
    table by step. Writes results to RUN.analysis.zarr and a figure to RUN.figures, both
    next to the store.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    reference : str, default: "final"
        The target x*: final, the name of a snapshot, the number of an epoch, step:4500
        for the start of a window, or the path or
        URL of another store, whose final iterate is the target; or a .npz, .pt or .pth file
        of tensors by name.
    reference_loss : float, optional
        Loss of all data at the target. Default: the loss that the run recorded there.
    measurement : str, optional
        Use the losses and gradients of a measurement, such as full_batch.
    full_batch : bool, default: False
        Say that every step uses all data, if the recording does not say so.
    output : Output
        Where results, tables and figures go.
    """
    run = trajstore.open_run(store)
    lazy = analyzers.convexity(
        run if measurement is None else run.measured(measurement),
        reference=geometry.read_reference(reference, run),
        reference_loss=reference_loss,
        full_batch=full_batch,
    )
    groups = [f"convexity-{geometry.result_group(lazy)}"]
    found = _execution.store_result(run, groups[0], lazy)
    label, loss = found.attrs["reference"], found.attrs["reference_loss"]
    drawn = {f"tangents at the iterates, towards {label}": found}
    parts: list[Table | str] = [
        f"Tangents at the iterates, towards {label}, where the loss is {loss:.6g}:",
        _slacks(found, ("slack",)),
    ]
    if full_batch or uses_all_data(run.attrs):
        groups.append("convexity-adjacent")
        adjacent = _execution.store_result(
            run, groups[-1], analyzers.adjacent_convexity(run)
        )
        drawn["tangents at neighbouring iterates"] = adjacent
        parts.append(f"Tangents at neighbouring iterates ({adjacent.attrs['rule']}):")
        parts.append(_slacks(adjacent, ("slack", "slack_back")))
    elif measurement is None:
        parts.append(
            "Losses and gradients come from minibatches: means describe the whole loss, "
            "but single steps do not. If the run recorded full_batch, pass --measurement "
            "full_batch for exact slacks; if every step uses all data, pass --full-batch."
        )
    report(
        run,
        *parts,
        data=found,
        drawn_from=[*drawn.values()],
        figures={groups[0]: lambda: curvature.convexity_figure(drawn)},
        output=output,
        groups=groups,
        name="slack",
        example="slack.is_violated.mean().values",
    )


def _slacks(found: "xr.Dataset", names: tuple[str, ...]) -> Table:
    """Return a table of mean slacks, smallest slacks and violations over spans of rows."""
    headers: list[str] = []
    for name in names:
        headers += [f"{name.removeprefix('slack_')}, mean", "least", "below 0"]
    table = make_table("steps", *headers, text=["steps"])
    step = found["step"].values
    for span in spans(len(step)):
        cells = []
        for name in names:
            values = found[name].values[span]
            below = found[f"is_violated{name.removeprefix('slack')}"].values[span]
            known = np.isfinite(values)
            if known.any():
                cells += [f"{values[known].mean():.3g}", f"{values[known].min():.3g}"]
                cells.append(f"{100 * below[known].mean():.0f} %")
            else:
                cells += ["-"] * 3
        table.add_row(f"{step[span.start]} to {step[span.stop - 1]}", *cells)
    return table


def scale_invariance(
    store: Positional[str],
    *,
    tolerance: float = TOLERANCE,
    output: Output = TERMINAL,
) -> None:
    """Cosine of every layer and its gradient, to find layers whose scale has no effect.

    The cosine is zero if the loss does not depend on the scale of the layer. Prints a table
    by layer. Writes results to RUN.analysis.zarr and a figure to RUN.figures, both next to
    the store.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    tolerance : float, default: 1e-4
        A layer counts as invariant if its |cosine| is at most this in every step.
    output : Output
        Where results, tables and figures go.
    """
    run = trajstore.open_run(store)
    lazy = analyzers.scale_invariance(run, tolerance=tolerance)
    found = _execution.store_result(run, "invariance", lazy)
    report(
        run,
        _cosines(found),
        _invariant_layers(found),
        data=found,
        figures={"invariance": lambda: analyzers.plots.scale_invariance(found)},
        output=output,
        groups=["invariance"],
        name="found",
        example="found.cosine_max.values",
    )


def _cosines(found: "xr.Dataset") -> Table:
    headers = ("rms", "largest", "invariant", "growth", "expected")
    table = make_table("tensor", *headers, text=["tensor"])
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


def _invariant_layers(found: "xr.Dataset") -> str:
    """Return a note on the number of invariant layers and their expected growth."""
    n = int(found["is_invariant"].sum())
    text = (
        f"{n} of {found.sizes['layer']} tensors are invariant: |cosine| is at most "
        f"{found.attrs['tolerance']:g} in every step."
    )
    if np.isfinite(found["expected_growth"]).any():
        text += " For these, |w|^2 is expected to grow by the sum of lr^2 |g|^2."
    return text
