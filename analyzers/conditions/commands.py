"""Commands for the alpha-beta, the aiming and the Polyak-Lojasiewicz condition."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from rich.table import Table
from tyro.conf import Positional

import analyzers
import trajstore
from analyzers import _execution, geometry
from analyzers._reporting import TERMINAL, Output, make_table, report, shown_rows
from analyzers.conditions.defaults import MIN_GAP
from trajstore import reading
from trajstore import store as storage
from trajstore.format.attrs import uses_all_data

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from trajstore.reading.run import Run

GRID: Final = 200
"""Number of grid points in each direction of the figure."""

MAX_CORNERS: Final = 20
"""Largest number of corners shown; a longer list shows every second, third, ... corner."""

MAX_DIGITS: Final = 12
"""Largest number of digits of a number in a table."""

GIVE_LOSS: Final = "give --reference-loss"
"""Advice where the losses at x* are not known."""

MINIBATCH_NOTE: Final = (
    "These gradients and losses come from minibatches, but the condition is about all data: "
    "record with traj-train run NAME --full-gradients, or call recorder.measure('full_batch', "
    "loss=loss) in a loop of your own, and pass --measurement full_batch. If every step of your "
    "loop uses all data, say so: --full-batch, or Recorder(attrs={'full_batch': True}) when you "
    "record."
)


def alpha_beta(
    stores: Positional[tuple[str, ...]],
    *,
    reference: str = "final",
    reference_loss: float | None = None,
    full_batch: bool = False,
    optimal_loss: float = 0.0,
    min_gap: float = MIN_GAP,
    output: Output = TERMINAL,
) -> None:
    """Pairs (alpha, beta) for which the alpha-beta condition holds at every step.

    Needs the losses at x*, which traj-train replay RUN computes. If every step uses all data,
    they are one number: give it as --reference-loss. Prints the smallest pairs and, if beta = 0
    is feasible, the largest alpha there.
    Writes results of each run to RUN.analysis.zarr, next to that run. The pairs for all
    runs go to RUN.analysis.zarr of the first run, and the figure goes to its RUN.figures.

    Parameters
    ----------
    stores : tuple of str
        Paths or URLs of trajectory stores, such as those of several seeds.
    reference : str, default: "final"
        The target x*: final, the name of a snapshot, the number of an epoch, step:4500
        for the start of a window, or the path or
        URL of another store, whose final iterate is the target; or a .npz, .pt or .pth file
        of tensors by name.
    reference_loss : float, optional
        Loss at x* of a run whose steps use all data. Default: the losses that traj-train replay
        computed.
    full_batch : bool, default: False
        Say that every step uses all data, if the recording does not say so.
    optimal_loss : float, default: 0.0
        Lower bound of the losses of all batches.
    min_gap : float, default: 0.1
        Smallest allowed alpha - beta.
    output : Output
        Where results, tables and figures go.
    """
    runs = [trajstore.open_run(store) for store in stores]
    datasets = []
    slug = ""
    for run in runs:
        target = geometry.read_reference(reference, run)
        losses = _reference_losses(run, reference_loss, full_batch=full_batch)
        found = analyzers.alpha_beta(
            run,
            reference=target,
            reference_losses=losses,
            optimal_loss=optimal_loss,
        )
        slug = reading.target_slug(found.attrs["reference"])
        datasets.append(_execution.store_result(run, f"alpha-beta-{slug}", found))
    bounds = stricter, pairs, looser = tuple(
        analyzers.feasible_set(datasets, min_gap=min_gap, n_stderr=n)
        for n in (-1, 0, 1)
    )
    _execution.store_result(runs[0], f"feasible-{slug}", pairs)
    report(
        runs[0],
        *_pairs(pairs, stricter, looser),
        _missing_steps(pairs),
        data=pairs,
        drawn_from=[*datasets, stricter, looser],
        figures={f"alpha-beta-{slug}": lambda: _draw(datasets, pairs, bounds, min_gap)},
        output=output,
        groups=[f"feasible-{slug}", f"alpha-beta-{slug}"],
        name="pairs",
        example="pairs.alpha.values",
    )


def _reference_losses(
    run: "Run", reference_loss: float | None, *, full_batch: bool = False
) -> npt.NDArray[np.float64] | None:
    """Return the loss at x* for every step, or None if it was not given."""
    if reference_loss is None:
        return None
    if not (full_batch or uses_all_data(run.attrs)):
        raise ValueError(
            f"--reference-loss is the loss of all data, and {run.location} does not say that "
            "its steps use all data. If they do, give --full-batch, too; "
            "Recorder(attrs={'full_batch': True}) says so when you record."
        )
    return np.full(run.n_steps, reference_loss)


def _draw(
    datasets: "list[xr.Dataset]",
    pairs: "xr.Dataset",
    bounds: "tuple[xr.Dataset, ...]",
    min_gap: float,
) -> "Figure":
    """Draw the feasible pairs, with the errors of their boundary."""
    alpha, beta = _grid(pairs, min_gap)
    margins = analyzers.margin(datasets, alpha, beta)
    boundaries = [analyzers.smallest_beta(bound, alpha) for bound in bounds]
    return analyzers.plots.alpha_beta(datasets, margins, pairs, boundaries)


def _grid(
    pairs: "xr.Dataset", min_gap: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return axes of alpha and beta for a grid around the smallest pairs."""
    best = float(pairs["best_alpha"])
    smallest = pairs["alpha"].values[pairs["is_smallest"].values]
    largest = 2 * max([best, *smallest], default=1.0) if np.isfinite(best) else 2.0
    # If beta = 0 is feasible, the boundary leaves 0 at the largest alpha there.
    if np.isfinite(at_zero := analyzers.largest_alpha(pairs)):
        largest = max(largest, 2 * at_zero)
    alpha = np.linspace(0, max(largest, 5 * min_gap, 1.0), GRID + 1)[1:]
    return alpha, np.linspace(0, alpha[-1] - min_gap, GRID)


def _pairs(
    pairs: "xr.Dataset", stricter: "xr.Dataset", looser: "xr.Dataset"
) -> list[Table | str]:
    """Report the smallest pairs and their errors, or the step that rules out all pairs."""
    names = [Path(storage.name_of(run)).name for run in pairs.attrs["runs"]]
    runs = "1 run" if len(names) == 1 else f"{len(names)} runs"
    steps = f"{int(pairs['n_steps']):,} steps of {runs}"
    if pairs.sizes["vertex"] == 0:
        step, run = int(pairs["limit_step"]), names[int(pairs["limit_run"])]
        note = (
            f"At {steps} no pair is feasible: at step {step} of {run} the loss at x* is "
            "the lowest possible, and the gradient does not point far enough away from x*"
            f"{pairs.attrs['note'].partition('away from x*')[2]}."
        )
        return [note]
    columns = ["alpha", "beta"]
    note = ""
    has_zero = not np.isnan(analyzers.largest_alpha(pairs))
    if has_zero:
        columns.append("largest alpha at beta = 0")
        if float(pairs["best_alpha"]) == pairs.attrs["min_gap"]:
            note = (
                "The smallest pair only repeats --min-gap, as it does for every run in which it "
                "is feasible: report the largest alpha at beta = 0."
            )
    best = make_table("products", *columns, text=["products"])
    labels = ("one error smaller", "as estimated", "one error larger")
    rows = []
    for shifted in (stricter, pairs, looser):
        row = [float(shifted[name]) for name in ("best_alpha", "best_beta")]
        if has_zero:
            row.append(analyzers.largest_alpha(shifted))
        rows.append(row)
    columns_ = [_distinct(column) for column in zip(*rows, strict=True)]
    for label, *values in zip(labels, *columns_, strict=True):
        best.add_row(label, *values)
    return [
        f"Smallest pairs for which the condition holds at all {steps}:",
        _corners(pairs, names),
        "Smallest alpha + beta:",
        best,
        note,
    ]


def _distinct(numbers: Sequence[float]) -> list[str]:
    """Format numbers with as many digits as tell different ones apart, at least four."""
    known = {number for number in numbers if np.isfinite(number)}
    digits = next(
        (
            n
            for n in range(4, MAX_DIGITS)
            if len({f"{x:.{n}g}" for x in known}) == len(known)
        ),
        MAX_DIGITS,
    )
    return ["none" if np.isnan(x) else f"{x:.{digits}g}" for x in numbers]


def _corners(pairs: "xr.Dataset", names: list[str]) -> Table:
    """Return a table of the corners of the Pareto front of feasible pairs."""
    table = make_table("alpha", "beta")
    table.add_column("beta is bounded by", overflow="ellipsis", no_wrap=True)
    chosen = np.flatnonzero(pairs["is_smallest"].values)
    rows = shown_rows(len(chosen), MAX_CORNERS)
    for i in chosen[rows]:
        step, run = int(pairs["step"][i]), int(pairs["run"][i])
        bound = "0" if step < 0 else f"step {step} of {names[run]}"
        values = [f"{float(pairs[name][i]):.4g}" for name in ("alpha", "beta")]
        table.add_row(*values, bound)
    if rows.step > 1:
        table.caption = f"One of every {rows.step} corners is shown."
    return table


def _missing_steps(pairs: "xr.Dataset") -> str:
    missing, rounded = int(pairs["n_missing"]), int(pairs["n_rounded"])
    sentences = []
    if missing:
        sentences.append(
            f"{missing:,} steps are left out: their product or a loss is unknown."
        )
    if rounded:
        sentences.append(
            f"{rounded:,} steps are left out: nothing but rounding is left of their product and of the "
            f"difference of their losses ({pairs.attrs['rounding']})."
        )
    return " ".join(sentences)


def aiming(
    store: Positional[str],
    *,
    reference: str = "final",
    measurement: str | None = None,
    full_batch: bool = False,
    output: Output = TERMINAL,
) -> None:
    """Angle between the gradient and x - x*, and theta of the aiming condition.

    Prints a table by epoch, or by ranges of steps if the run has one epoch. Writes results to
    RUN.analysis.zarr and a figure to RUN.figures, both next to the store.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    reference : str, default: "final"
        The target x*: final, the name of a snapshot, the number of an epoch, step:4500
        for the start of a window, or the path or
        URL of another store, whose final iterate is the target; or a .npz, .pt or .pth file
        of tensors by name.
    measurement : str, optional
        Use the gradients and losses of a measurement, such as full_batch.
    full_batch : bool, default: False
        Say that every step uses all data, if the recording does not say so.
    output : Output
        Where results, tables and figures go.
    """
    run = trajstore.open_run(store)
    target = geometry.read_reference(reference, run)
    lazy = analyzers.aiming(
        run, reference=target, measurement=measurement, full_batch=full_batch
    )
    group = _group(
        f"aiming-{reading.target_slug(lazy.attrs['reference'])}", measurement
    )
    found = _execution.store_result(run, group, lazy)
    report(
        run,
        _aiming_by_epoch(found),
        _rounded_thetas(found),
        "Theta divides by the loss, as in the paper. If the smallest possible loss f* is not 0, use "
        "theta * loss / (loss - f*).",
        MINIBATCH_NOTE if found.attrs["gradient"] == "minibatch" else "",
        data=found,
        figures={group: lambda: analyzers.plots.aiming(found)},
        output=output,
        groups=[group],
        name="aimed",
        example="aimed.theta.min().item()",
    )


def _group(name: str, measurement: str | None) -> str:
    # Measurements may have any name, including characters that a path cannot hold.
    return name if measurement is None else f"{name}-of-{quote(measurement, safe='')}"


def _aiming_by_epoch(aimed: "xr.Dataset") -> Table:
    """Return a table of means and minima by epoch, at most 80 columns wide."""
    dataset, name = geometry.by_time(aimed)
    title = "epoch" if name == "epoch" else "from step"
    table = make_table(title, "loss", "angle", "cosine", "min", "theta", "min")
    epochs = list(dataset.groupby("epoch"))
    rows = shown_rows(len(epochs))
    for epoch, steps in epochs[:: rows.step]:
        n = int(steps["theta"].notnull().sum())
        # Errors of theta are independent from step to step.
        stderr = float((steps["theta_stderr"] ** 2).sum() ** 0.5) / max(n, 1)
        mean = steps.mean()
        table.add_row(
            str(epoch),
            f"{float(mean['loss']):.4g}",
            f"{float(mean['angle']):.1f}°",
            f"{float(mean['cosine']):.4f}",
            f"{float(steps['cosine'].min()):.3f}",
            f"{float(mean['theta']):.4g} ±{stderr:.1g}",
            f"{float(steps['theta'].min()):.3g}",
        )
    if rows.step > 1:
        table.caption = f"One of every {rows.step} epochs is shown."
    return table


def _rounded_thetas(aimed: "xr.Dataset") -> str:
    is_known = aimed["cosine"].notnull() & (aimed["loss"] != 0)
    rounded = int((is_known & aimed["theta"].isnull()).sum())
    if not rounded:
        return ""
    return (
        f"{rounded:,} steps have no theta: nothing but rounding is left of their product of gradient and "
        f"x - x* ({aimed.attrs['rounding']})."
    )


def polyak_lojasiewicz(
    store: Positional[str],
    *,
    reference: str = "final",
    reference_loss: float | None = None,
    measurement: str | None = None,
    full_batch: bool = False,
    output: Output = TERMINAL,
) -> None:
    """Constants mu of the Polyak-Lojasiewicz condition that the steps of a run allow.

    Prints the smallest mu for every order of the condition. Writes results to
    RUN.analysis.zarr and a figure to RUN.figures, both next to the store.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    reference : str, default: "final"
        The target x*, at which traj-train replay computed the loss. Unused if
        reference_loss is given.
    reference_loss : float, optional
        f*, the infimum of the loss or a lower bound. Default: the loss at x* that traj-train
        replay computed, with which mu is too large.
    measurement : str, optional
        Use the gradients and losses of a measurement, such as full_batch.
    full_batch : bool, default: False
        Say that every step uses all data, if the recording does not say so.
    output : Output
        Where results, tables and figures go.
    """
    run = trajstore.open_run(store)
    source = ""
    if reference_loss is None:
        target = geometry.read_reference(reference, run)
        losses = geometry.replayed(run, target, otherwise=GIVE_LOSS)
        source = ", the loss at x*"
        reference_loss = float(losses["full_reference_loss"])
    group = _group("pl", measurement)
    bounds = analyzers.polyak_lojasiewicz(
        run,
        reference_loss=reference_loss,
        measurement=measurement,
        full_batch=full_batch,
    )
    found = _execution.store_result(run, group, bounds)
    report(
        run,
        _smallest_mu(found),
        f"f* = {reference_loss:.6g}{source}. Mu is {found.attrs['mu_is']}.",
        _unbounded_steps(found),
        MINIBATCH_NOTE if found.attrs["gradient"] == "minibatch" else "",
        data=found,
        figures={group: lambda: analyzers.plots.polyak_lojasiewicz(found)},
        output=output,
        groups=[group],
        name="bounds",
        example="bounds.smallest.values",
    )


def _smallest_mu(bounds: "xr.Dataset") -> Table:
    table = make_table("delta", "smallest mu", "at step")
    for i, delta in enumerate(bounds["delta"].values):
        mu, step = float(bounds["smallest"][i]), int(bounds["smallest_step"][i])
        value = f"{mu:.4g}" if np.isfinite(mu) else "none"
        table.add_row(f"{delta:g}", value, str(step) if step >= 0 else "")
    return table


def _unbounded_steps(bounds: "xr.Dataset") -> str:
    rounded = int(bounds["n_rounded"])
    missing = int(bounds["n_missing"]) - rounded
    sentences = []
    if missing > 0:
        sentences.append(
            f"{missing:,} of {bounds.sizes['step']:,} steps do not bound mu: their loss is not "
            "above f*, or their loss or gradient norm is unknown."
        )
    if rounded:
        sentences.append(
            f"{rounded:,} of {bounds.sizes['step']:,} steps are left out: nothing but rounding is left "
            f"of their loss minus f*, or of their gradient ({bounds.attrs['rounding']})."
        )
    return " ".join(sentences)
