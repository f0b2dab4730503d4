"""Compare stated with actual errors, on trainings that no constant was fitted to.

Many recorders with seeds of their own record one training run, which also keeps every iterate
and gradient. The exact geometry follows from these vectors in float64, by code that shares
nothing with the estimator. Means over seeds tell bias from spread. For every training the
benchmark reports, relative to the largest value that the quantity can have:

- ``error``: the rms error;
- ``z``: the rms of the error over the stated standard error, 1 if that is honest; and its
  uncertainty;
- ``t``: the mean error over seeds, in standard errors of that mean.

Mid-run excludes the first and the last epoch; the last epoch excludes the last two steps.
``--only mlp300k`` measures one training in about a minute, ``--compare old.json`` compares with
the results of another version, and everything takes about ten minutes on 2 cores with 12 seeds.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import tyro
import xarray as xr
from calibration_trainings import TRAININGS, Case, Loop, Training
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from saving import RESULTS, save_results
from scipy.stats import norm, t
from torch import nn

import analyzers
import trajstore

Array = npt.NDArray[Any]

QUANTITIES = ("gamma", "rsi", "eb", "lolr", "distance")
SPANS = ("first", "middle", "last")
ROUNDING = 3e-7
"""Relative errors that float32 explains; smaller standard errors are not compared."""

SMALLEST_LAYER = 200
"""Elements of the smallest layer that is compared."""

STEP_BAR, MEAN_BAR, LAYER_BAR = (0.9, 1.1), (0.85, 1.15), (0.8, 1.2)
"""Ranges of honest z: of steps and of epoch means in mid-run, and of layers."""

LARGEST_T = 3.0
"""Bar of the bias at many seeds; at few seeds, the value of Student's t that is as rare."""

LARGEST_LAYER_Z = 6.0


class Kept(NamedTuple):
    """Everything that the optimizer saw, float32 as in training."""

    iterates: Array  # (step + 1, parameter)
    gradients: Array  # (step, parameter)
    layers: dict[str, int]  # sizes by name


def flat(tensors: Sequence[torch.Tensor]) -> Array:
    """Return tensors as one flat array."""
    return torch.cat([t.detach().flatten() for t in tensors]).numpy()


def train(
    loop: Loop, n_steps: int, before_step: Callable[[int], None] = lambda _: None
) -> Kept:
    """Train, and keep every iterate and gradient."""
    named = dict(loop.model.named_parameters())
    layers = {name: p.numel() for name, p in named.items()}
    iterates = np.empty((n_steps + 1, sum(layers.values())), np.float32)
    gradients = np.zeros_like(iterates[1:])
    for step in range(n_steps):
        loop.optimizer.zero_grad()
        loop.loss().backward()
        nn.utils.clip_grad_norm_(loop.model.parameters(), loop.largest_norm)
        before_step(step)
        iterates[step] = flat(list(named.values()))
        gradients[step] = flat(
            [torch.zeros_like(p) if p.grad is None else p.grad for p in named.values()]
        )
        loop.optimizer.step()
        if loop.schedule is not None:
            loop.schedule.step()
    iterates[-1] = flat(list(named.values()))
    return Kept(iterates, gradients, layers)


def record(
    training: Training,
    seeds: int,
    directory: Path,
    advance: Callable[[], None],
) -> tuple[Kept, dict[str, list[trajstore.Run]]]:
    """Train once under the recorders of all cases, and open their runs by case."""
    loop = training.start(0)
    options = {name: dict(case.recorder) for name, case in training.cases.items()}
    # Cases with the same options share their recordings.
    distinct = {json.dumps(o, sort_keys=True): o for o in options.values()}
    common: dict[str, Any] = {"total_steps": training.total_steps}
    if training.with_epochs:
        common["steps_per_epoch"] = training.steps_per_epoch
    arguments = {
        (key, seed): {
            "path": directory / f"{i}-{seed}.zarr",
            "model": loop.model,
            "optimizer": loop.optimizer,
            "seed": seed,
            **common,
            **option,
        }
        for i, (key, option) in enumerate(distinct.items())
        for seed in range(seeds)
    }
    recorders = {key: trajstore.Recorder(**given) for key, given in arguments.items()}

    def before_step(step: int) -> None:
        advance()
        if step == training.total_steps // 2:
            for recorder in recorders.values():
                recorder.snapshot("middle")

    def resume() -> None:
        for key, recorder in recorders.items():
            state = recorder.state_dict()
            recorder.close()
            recorders[key] = trajstore.Recorder(**arguments[key], resume=state)

    kept = train(loop, training.resume_at or training.total_steps, before_step)
    if training.resume_at is not None:
        resume()
        first = training.resume_at
        rest = train(
            loop, training.total_steps - first, lambda step: before_step(first + step)
        )
        kept = Kept(
            np.concatenate([kept.iterates[:-1], rest.iterates]),
            np.concatenate([kept.gradients, rest.gradients]),
            kept.layers,
        )
    for recorder in recorders.values():
        recorder.close()
    runs = {
        name: [
            trajstore.open_run(arguments[key, seed]["path"]) for seed in range(seeds)
        ]
        for name, option in options.items()
        for key in [json.dumps(option, sort_keys=True)]
    }
    return kept, runs


def exact_geometry(kept: Kept, target: Array, weight_decay: float) -> dict[str, Array]:
    """Return all quantities in float64, (step, 1 + layer): the whole network, then its layers."""
    starts = np.cumsum([0, *kept.layers.values()][:-1])
    sums = np.empty((3, len(kept.gradients), len(kept.layers)))
    goal = target.astype(np.float64)
    for step, (gradient, iterate) in enumerate(
        zip(kept.gradients, kept.iterates[:-1], strict=True)
    ):
        x = iterate.astype(np.float64)
        g = gradient.astype(np.float64) + weight_decay * x
        for which, products in enumerate((g * (x - goal), g * g, (x - goal) ** 2)):
            sums[which, step] = np.add.reduceat(products, starts)
    product, gradient_sq, distance_sq = np.concatenate(
        [sums.sum(2, keepdims=True), sums], 2
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "gamma": product / np.sqrt(gradient_sq * distance_sq),
            "rsi": product / distance_sq,
            "eb": np.sqrt(gradient_sq / distance_sq),
            "lolr": product / gradient_sq,
            "distance": np.sqrt(distance_sq),
        }


def largest_values(exact: Mapping[str, Array]) -> dict[str, Array]:
    """Return the largest value that each quantity can have, given |g| and the distance."""
    eb, distance = exact["eb"], exact["distance"]
    with np.errstate(divide="ignore"):
        return {
            "gamma": np.ones_like(eb),
            "rsi": eb,
            "eb": eb,
            "lolr": 1 / eb,
            "distance": distance,
        }


class Compared(NamedTuple):
    """Errors and standard errors, relative to the largest values, (seed, row, column)."""

    errors: Array
    stderrs: Array

    def __getitem__(self, index: Any) -> "Compared":  # type: ignore[override]
        return Compared(self.errors[index], self.stderrs[index])


def scores(compared: Compared) -> dict[str, float]:
    """Summarise errors over seeds, rows and columns."""
    errors, stderrs = (values.reshape(len(values), -1) for values in compared)
    explained = (stderrs < ROUNDING) & (np.abs(errors) < 10 * ROUNDING)
    finite = np.isfinite(errors) & np.isfinite(stderrs)
    counted = finite & ~explained
    result = {
        "error": _rms(errors[finite]),
        "missing": float(1 - finite.mean()),
    }
    if not counted.any():
        return result | {"z": 0.0, "z stderr": 0.0, "largest z": 0.0, "t": 0.0}
    # Rows that some seeds lack would bias the mean over seeds.
    whole = counted.all(0)
    z = errors / np.where(counted, np.maximum(stderrs, ROUNDING), np.nan)
    squares = np.nanmean(z**2, 1)
    squares = squares[np.isfinite(squares)]
    root = np.sqrt(squares.mean())
    # Every row has one unit for all seeds, so that errors of the units cause no bias.
    unit = np.maximum(np.sqrt((stderrs[:, whole] ** 2).mean(0)), ROUNDING)
    means = (errors[:, whole] / unit).mean(1) if whole.any() else np.zeros(2)
    return result | {
        "z": float(root),
        "z stderr": _stderr(squares) / (2 * float(root)),
        "largest z": float(np.nanmax(np.abs(z))),
        "t": float(means.mean()) / max(_stderr(means), 1e-12),
    }


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else float("nan")


def _stderr(values: Array) -> float:
    """Return the standard error of the mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def compare_steps(
    estimated: Sequence[xr.Dataset], exact: Sequence[Mapping[str, Array]], name: str
) -> Compared:
    """Return the errors of all steps, (seed, step, column)."""
    values, stderrs = (
        np.array([_columns(e[key].values) for e in estimated])
        for key in (name, f"{name}_stderr")
    )
    n_columns = values.shape[2]
    truth, largest = (
        np.array([by_name[name] for by_name in many])
        for many in (exact, [largest_values(e) for e in exact])
    )
    if n_columns > 1:
        truth, largest = truth[..., 1:], largest[..., 1:]
    else:
        truth, largest = truth[..., :1], largest[..., :1]
    with np.errstate(invalid="ignore"):
        return Compared((values - truth) / largest, stderrs / largest)


def compare_means(
    estimated: Sequence[xr.Dataset], exact: Sequence[Mapping[str, Array]], name: str
) -> Compared:
    """Return the errors of the means over epochs, (seed, epoch, 1)."""
    errors, stderrs = [], []
    for geometry, truth in zip(estimated, exact, strict=True):
        means = analyzers.epoch_means(geometry).compute()
        epochs = geometry["epoch"].values
        averaged = np.isfinite(geometry[name].values)
        largest = largest_values(truth)[name][:, 0]
        rows = [averaged & (epochs == epoch) for epoch in means["epoch"].values]
        true = np.array([truth[name][row, 0].mean() for row in rows])
        unit = np.array([largest[row].mean() for row in rows])
        errors.append((means[name].values - true) / unit)
        stderrs.append(means[f"{name}_stderr"].values / unit)
    return Compared(np.array(errors)[..., None], np.array(stderrs)[..., None])


def _columns(values: Array) -> Array:
    return values[:, None] if values.ndim == 1 else values


def measure_case(
    training: Training,
    case: Case,
    kept: Kept,
    runs: Sequence[trajstore.Run],
    others: tuple[Kept, trajstore.Run] | None,
    advance: Callable[[], None],
) -> dict[str, Any]:
    """Analyse all recordings of a case, and compare them with the exact geometry."""
    estimated, by_layer, exact = [], [], []
    for run in runs:
        reference, target = find_target(training, case, kept, run, others)
        if not exact or case.reference in {"epoch", "average"}:
            truth = exact_geometry(kept, target, case.weight_decay)
        exact.append(truth)
        options = {"reference": reference, "weight_decay": case.weight_decay}
        geometry = analyzers.path_geometry(run, **options).compute()
        # Recordings without epochs are compared in parts of equal length, too.
        epoch = np.arange(run.n_steps) // training.steps_per_epoch
        geometry = geometry.drop_indexes(["epoch", "iteration"], errors="ignore")
        estimated.append(geometry.assign_coords(epoch=("step", epoch)))
        if case.layers:
            layers = analyzers.path_geometry(run, **options, layers=True)
            by_layer.append(
                layers[
                    ["gamma", "distance", "gamma_stderr", "distance_stderr"]
                ].compute()
            )
        advance()
    last = training.total_steps - training.steps_per_epoch
    rows = {
        "first": slice(0, training.steps_per_epoch),
        "middle": slice(training.steps_per_epoch, last),
        "last": slice(last, training.total_steps - 2),
    }
    epochs = {"first": slice(0, 1), "middle": slice(1, -1), "last": slice(-1, None)}
    result: dict[str, Any] = {
        "parameters": sum(kept.layers.values()),
        "sizes of layers": list(kept.layers.values()),
        "steps": training.total_steps,
        "steps per epoch": training.steps_per_epoch,
        "optimizer": training.optimizer,
        "rate": training.rate,
        "sketch bits": runs[0].spec.sketch_bits,
        "seeds": len(runs),
        "bytes": np.mean([_size(Path(run.location)) for run in runs])
        / len(kept.gradients),
        "quantities": {},
    }
    for name in QUANTITIES:
        steps = compare_steps(estimated, exact, name)
        means = compare_means(estimated, exact, name)
        result["quantities"][name] = {
            part: {
                "step": scores(steps[:, rows[part]]),
                "mean": scores(means[:, epochs[part]]),
            }
            for part in SPANS
        }
    if case.layers:
        result["layers"] = {
            name: {
                layer: scores(errors[:, rows["middle"], i])
                for i, (layer, size) in enumerate(kept.layers.items())
                if size > SMALLEST_LAYER
            }
            for name in ("gamma", "distance")
            for errors in [compare_steps(by_layer, exact, name)]
        }
    return result


def find_target(
    training: Training,
    case: Case,
    kept: Kept,
    run: trajstore.Run,
    others: tuple[Kept, trajstore.Run] | None,
) -> tuple[Any, Array]:
    """Return the target of a case, for the analysis and as a flat vector."""
    middle = training.epochs // 2
    if case.reference == "snapshot":
        return "middle", kept.iterates[training.total_steps // 2]
    if case.reference == "another run":
        assert others is not None
        return others[1], others[0].iterates[-1]
    if case.reference == "epoch":
        # The target is the anchor that the store holds, not the iterate that it encodes.
        held = trajstore.parameters_at(run, middle)
    elif case.reference == "average":
        held = analyzers.average_of_epochs(run, range(middle, training.epochs))
    else:
        return "final", kept.iterates[-1]
    return held if case.reference == "average" else middle, np.concatenate(
        [values.ravel() for values in held.values()]
    )


def _size(path: Path) -> int:
    """Return the size of all files below a path, without the JSON documents."""
    return sum(
        f.stat().st_size for f in path.rglob("*") if f.is_file() and f.suffix != ".json"
    )


def measure(
    training: Training,
    seeds: int,
    directory: Path,
    phase: Callable[[str, int], Callable[[], None]],
) -> dict[str, dict[str, Any]]:
    """Record and analyse one training run; return the results by case."""
    n_steps = training.total_steps
    kept, runs = record(training, seeds, directory, phase("recording", n_steps))
    others = None
    if any(case.reference == "another run" for case in training.cases.values()):
        loop = training.start(1)
        path = directory / "other.zarr"
        with trajstore.Recorder(path, loop.model, loop.optimizer):
            other = train(loop, n_steps)
        others = other, trajstore.open_run(path)
    advance = phase("analysing", seeds * len(training.cases))
    return {
        name: measure_case(training, case, kept, runs[name], others, advance)
        for name, case in training.cases.items()
    }


@contextmanager
def phases(console: Console) -> Iterator[Callable[[str, str, int], Callable[[], None]]]:
    """Show the progress of several phases, one after the other."""
    with Progress(console=console, transient=True) as progress:

        def phase(name: str, title: str, total: int) -> Callable[[], None]:
            task = progress.add_task(f"{name}: {title}", total=total)
            return lambda: progress.advance(task)

        yield phase


def table_of(name: str, result: Mapping[str, Any]) -> Table:
    """Return a table of one case: a line for every quantity and part."""
    title = (
        f"{name}: {result['parameters']:,} parameters, {result['steps']} steps, "
        f"{result['seeds']} seeds, {result['bytes']:,.0f} bytes a step"
    )
    table = Table(title=title, box=None, title_justify="left")
    columns = ("step: error", "z", "±", "largest z", "t", "missing")
    for column in ("", "", *columns, "mean: error", *columns[1:]):
        table.add_column(column, justify="right")
    for quantity, parts in result["quantities"].items():
        for part, both in parts.items():
            cells = [cell for scored in both.values() for cell in _cells(scored)]
            table.add_row(quantity, part, *cells)
    for quantity, layers in result.get("layers", {}).items():
        for layer, scored in layers.items():
            table.add_row(f"{quantity} of", layer, *_cells(scored))
    return table


def _cells(scored: Mapping[str, float]) -> list[str]:
    return [
        f"{scored['error']:.5f}",
        f"{scored['z']:.2f}",
        f"{scored['z stderr']:.2f}",
        f"{scored['largest z']:.1f}",
        f"{scored['t']:.1f}",
        f"{scored['missing']:.0%}",
    ]


def outside(results: Mapping[str, Any]) -> list[str]:
    """Return a line for everything that is not honest."""
    lines = []

    def check(
        title: str, scored: Mapping[str, float], bar: tuple[float, float]
    ) -> None:
        if not bar[0] <= scored["z"] <= bar[1]:
            z = f"z {scored['z']:.2f} ± {scored['z stderr']:.2f}"
            lines.append(f"{title}: {z}, expected {bar[0]} to {bar[1]}")

    for name, result in results.items():
        rare = t.isf(norm.sf(LARGEST_T), result["seeds"] - 1)
        for quantity, parts in result["quantities"].items():
            title = f"{name}: {quantity}"
            middle = parts["middle"]
            check(f"{title}, steps", middle["step"], STEP_BAR)
            check(f"{title}, epoch means", middle["mean"], MEAN_BAR)
            lines += [
                f"{title}, {part}, {kind}: t {scored['t']:.1f}"
                for part, both in parts.items()
                for kind, scored in both.items()
                if abs(scored["t"]) >= rare
            ]
        for quantity, layers in result.get("layers", {}).items():
            for layer, scored in layers.items():
                title = f"{name}: {quantity} of {layer}"
                check(title, scored, LAYER_BAR)
                if scored["largest z"] >= LARGEST_LAYER_Z:
                    lines.append(f"{title}: largest z {scored['largest z']:.1f}")
    return lines


def comparison(new: Mapping[str, Any], old: Mapping[str, Any]) -> Table:
    """Return a table of errors and sizes relative to older results."""
    table = Table(title="new over old, mid-run", box=None, title_justify="left")
    kinds = [
        (f"{quantity}, {kind}", quantity, kind)
        for quantity in ("gamma", "distance")
        for kind in ("step", "mean")
    ]
    for column in ("", "bytes", *(title for title, *_ in kinds)):
        table.add_column(column, justify="right")
    for name in [name for name in new if name in old]:
        ratios = [new[name]["bytes"] / old[name]["bytes"]]
        for _, quantity, kind in kinds:
            errors = [
                results[name]["quantities"][quantity]["middle"][kind]["error"]
                for results in (new, old)
            ]
            ratios.append(errors[0] / errors[1])
        table.add_row(name, *(f"{ratio:.3f}" for ratio in ratios))
    return table


def main(
    *,
    only: tuple[Literal[tuple(TRAININGS)], ...] = (),  # type: ignore[valid-type]
    seeds: int = 12,
    out: Path = RESULTS / "calibration.json",
    compare: Path | None = None,
) -> None:
    """Measure, print and save the results.

    Parameters
    ----------
    only : str
        Names of the trainings to measure; all by default.
    seeds : int
        Number of recorders of each kind.
    out : Path
        JSON file to write; results of other trainings in the file are kept.
    compare : Path, optional
        JSON file of older results to compare with.
    """
    torch.set_num_threads(1)
    console = Console(width=170)
    measured: dict[str, Any] = {}
    for name in only or TRAININGS:
        with (
            tempfile.TemporaryDirectory() as directory,
            phases(Console(stderr=True)) as phase,
        ):
            cases = measure(
                TRAININGS[name], seeds, Path(directory), lambda *a, n=name: phase(n, *a)
            )
        found = {f"{name}, {case}" if case else name: r for case, r in cases.items()}
        for title, result in found.items():
            console.print(table_of(title, result))
        measured |= found
        kept = json.loads(out.read_text()) if out.exists() else {}
        save_results(kept | measured, out)
    for line in outside(measured):
        console.print(line, markup=False)
    if compare is not None:
        console.print(comparison(measured, json.loads(compare.read_text())))


if __name__ == "__main__":
    tyro.cli(main)
