"""Measure the errors of gamma and distance against the exact two-run protocol.

Each workload is trained four times: recorded, twice under the two-run protocol, and briefly
in exact mode. During the second run of the protocol, the schemes of README's table are
also tried on the same gradients, with 8 KB per step. Takes about half an hour on 2 cores;
``--quick`` shortens the runs.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tyro
import xarray as xr
from rich.console import Console
from rich.progress import track
from rich.table import Table
from saving import RESULTS, save_results
from torch import nn
from torch.optim import Optimizer

import analyzers
import trajstore
from analyzers._engine.arrays.low_rank import regress
from train.loop import train as train_workload
from train.observer import Log, Observer
from train.protocols.two_run import two_run
from train.workloads.catalogue import settings_of
from trajstore.sketch.rotation import rotate
from trajstore.sketch.sketch import Sketch

Array = npt.NDArray[Any]

WORKLOADS: dict[str, Any] = {
    "digits ResNet": settings_of("digits-resnet"),
    "digits MLP": settings_of("digits-mlp"),
    "English transformer": settings_of("english-transformer"),
}
SCHEMES = ("float32 projection", "CountSketch", "1 bit", "+ weights", "+ low rank")
BITS = 65536
WHITE_LIMIT = 1 / np.sqrt(2 * np.log(2) * BITS)
"""Smallest error of a code of white gradients of infinitely many parameters."""


class Schemes:
    """Estimates <g, x - x*> by each scheme, from x* and the stored anchors."""

    def __init__(self, run: trajstore.Run) -> None:
        self._run, self._layout = run, run.layout
        everything = slice(0, run.layout.size)
        self._everything = everything
        self._final = run.stored.array("final")[everything]
        # The schemes must not share the random signs of the recorder.
        self._sketch = Sketch(size=run.layout.size, bits=BITS, seed=987_654_321)
        self._window = -1
        self.errors: list[list[float]] = []

    @contextmanager
    def observe(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        steps_per_epoch: int,
        total_steps: int,
    ) -> Iterator[None]:
        """Estimate the product in each step; usable as an observer of the training."""
        del steps_per_epoch, total_steps
        handle = optimizer.register_step_pre_hook(lambda *_: self._step(model))
        yield
        handle.remove()

    def _step(self, model: nn.Module) -> None:
        named = dict(model.named_parameters())
        x = self._layout.flatten({k: p.detach().numpy() for k, p in named.items()})
        g = self._layout.flatten(
            {
                k: np.zeros(p.shape) if p.grad is None else p.grad.numpy()
                for k, p in named.items()
            }
        )
        step = len(self.errors)
        self._enter_window(int(self._run.stored.array("window")[step]))
        to_target = x.astype(np.float64) - self._final
        centred = g.astype(np.float64) @ (x - self._anchor)
        norm = np.linalg.norm(g.astype(np.float64)) * np.linalg.norm(to_target)
        products = self._products(g, step)
        exact = g.astype(np.float64) @ to_target
        self.errors.append([(centred - p - exact) / norm for p in products])

    def _products(self, g: Array, step: int) -> list[float]:
        """Return the estimate of <g, v> by each scheme; v is x* less the anchor."""
        sketch, v = self._sketch, self._v
        floats = BITS // 32
        signs, rows = sketch.step_signs(step)
        rotated = [
            rotate(sketch.fold(vector, rows), signs)[:floats] for vector in (g, v)
        ]
        projected = float(rotated[0] @ rotated[1]) * BITS / floats
        rng = np.random.default_rng(step)
        own_signs = 2.0 * rng.integers(0, 2, len(g)) - 1
        buckets = rng.integers(0, floats, len(g))
        counted = [np.bincount(buckets, own_signs * u, floats) for u in (g, v)]
        low_rank = float((self._on_basis(g) * self._coefficients).sum())
        return [
            projected,
            float(counted[0] @ counted[1]),
            self._one_bit(g, v, step),
            self._one_bit(g * self._weights, v / self._weights, step),
            low_rank
            + self._one_bit(g * self._weights, self._residual / self._weights, step),
        ]

    def _one_bit(self, g: Array, v: Array, step: int) -> float:
        signs, scales = self._sketch.encode(g, step)
        decoded = self._sketch.decode(signs[None], scales[None], np.array([step]))
        folded = decoded.row_signs[0] @ self._sketch.fold.signed_rows(v)
        return float(decoded.buckets[0] @ folded)

    def _enter_window(self, window: int) -> None:
        if window == self._window:
            return
        run = self._run
        self._sketch = replace(self._sketch, window=window)
        anchors = [
            run.stored.anchors.decode(max(0, window - lag), self._everything)
            for lag in (0, 1, 2)
        ]
        self._window, self._anchor = window, anchors[0]
        self._basis = [anchors[0], *(anchors[0] - r for r in anchors[1:])]
        self._v = self._final - self._anchor
        gram = np.stack([self._on_basis(s) for s in self._basis], -2)
        self._coefficients = regress(gram, self._on_basis(self._v))
        self._residual = self._v.copy()
        for s, c in zip(self._basis, self._coefficients.T, strict=True):
            self._residual -= self._by_element(c.astype(np.float32)) * s
        stored = run.windows["weights"].values[window]
        self._weights = self._by_element(stored.astype(np.float32))

    def _on_basis(self, vector: Array) -> Array:
        """Return the products with the basis by layer, (layer, basis)."""
        products = [vector.astype(np.float64) * s for s in self._basis]
        sums = np.stack(products, -1).reshape(-1, 1024, len(self._basis)).sum(1)
        return np.add.reduceat(sums, self._layout.offsets // 1024)

    def _by_element(self, by_layer: Array) -> Array:
        return np.repeat(by_layer[self._layout.layer_of_block], 1024)


@contextmanager
def _both(first: Observer, second: Any, *args: Any, **kwargs: Any) -> Iterator[Log]:
    with ExitStack() as stack:
        log = stack.enter_context(first(*args, **kwargs))
        stack.enter_context(second(*args, **kwargs))
        yield log


def measure(name: str, experiment: Any, console: Console) -> dict[str, Any]:
    """Train one workload by every protocol, and compare the results."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run.zarr"
        progress = partial(track, console=console)
        train_workload(
            experiment,
            partial(trajstore.Recorder, path),
            partial(progress, description=f"{name}: recorded"),
        )
        run = trajstore.open_run(path)
        schemes = Schemes(run)
        passes = iter(("first run", "second run, schemes"))

        def train(observe: Observer) -> None:
            title = next(passes)
            if title.startswith("second"):
                observe = partial(_both, observe, schemes.observe)
            titled = partial(progress, description=f"{name}: {title}")
            train_workload(experiment, observe, titled)

        exact = two_run(train, layers=True)
        result = compare(run, exact, np.array(schemes.errors))
        result["exact mode, |gamma - two-run|"] = exact_mode(experiment, directory)
    return result


def compare(run: trajstore.Run, exact: xr.Dataset, errors: Array) -> dict[str, Any]:
    """Return the errors of a recorded run relative to exact values."""
    geometry = analyzers.path_geometry(run).compute()
    by_layer = analyzers.path_geometry(run, layers=True).compute()
    truth = over_all_layers(exact)
    start = run.windows["start"].values
    epochs = run.stored.array("epoch")[:]
    last = epochs.max()
    step = np.arange(run.n_steps)
    # The middle excludes the first epoch, windows 0 and 1, the last window that starts before
    # the last epoch, and all windows after it. The part "last" excludes the last two steps.
    windows = run.stored.array("window")[:]
    whole = np.flatnonzero(start < np.flatnonzero(epochs == last)[0])
    parts = {
        "first": epochs == 0,
        "middle": (windows >= 2) & (windows <= whole.max() - 1) & (epochs > 0),
        "last": (epochs == last) & (step < run.n_steps - 2),
    }
    error = geometry["gamma"].values - truth["gamma"]
    z = error / geometry["gamma_stderr"].values
    relative = geometry["distance"].values / truth["distance"] - 1
    layer_z = (by_layer["gamma"] - exact["gamma"].values) / by_layer["gamma_stderr"]
    result: dict[str, Any] = {
        "parameters": run.layout.n_params,
        "steps": run.n_steps,
        "mean gamma": float(np.mean(truth["gamma"][parts["middle"]])),
    }
    for part, here in parts.items():
        layer_spread = layer_z.values[here].std(0)
        result[part] = {
            "rms error of gamma": rms(error[here]),
            "bias in standard errors": float(
                error[here].mean() / (error[here].std() / np.sqrt(here.sum()))
            ),
            "std of z": float(z[here].std()),
            "std of z by layer": [float(layer_spread.min()), float(layer_spread.max())],
            "largest relative error of distance": float(np.abs(relative[here]).max()),
            "schemes": dict(zip(SCHEMES, map(rms, errors[here].T), strict=True)),
        }
    result["epoch means"] = epoch_errors(geometry, truth, parts["middle"])
    middle = result["middle"]
    ratio = middle["schemes"]["float32 projection"] / middle["rms error of gamma"]
    stored = sum(f.stat().st_size for f in Path(run.location).rglob("*") if f.is_file())
    result["bytes a step, whole store"] = stored / run.n_steps
    projection_bytes = BITS / 8 * ratio**2
    code_bytes = BITS / 8 + 4
    result["bytes of a float32 projection over signs and scales"] = (
        projection_bytes / code_bytes
    )
    result["bytes of a float32 projection over the whole store"] = (
        projection_bytes / result["bytes a step, whole store"]
    )
    return result


def rms(errors: Array) -> float:
    """Return the root mean square of errors."""
    return float(np.sqrt(np.mean(np.square(errors))))


def over_all_layers(exact: xr.Dataset) -> dict[str, Array]:
    """Return the exact gamma and distance of the whole network."""
    distance_sq = (exact["distance"] ** 2).values
    gradient = (exact["eb"] * exact["distance"]).values
    product = np.nansum(exact["rsi"].values * distance_sq, 1)
    distance = np.sqrt(distance_sq.sum(1))
    norm = np.sqrt(np.nansum(gradient**2, 1))
    return {"gamma": product / (norm * distance), "distance": distance}


def epoch_errors(
    geometry: xr.Dataset, truth: dict[str, Array], middle: Array
) -> dict[str, float]:
    """Return the errors of epoch means in the middle of the run."""
    means = analyzers.epoch_means(geometry)
    exact = geometry["gamma"].copy(data=truth["gamma"]).groupby("epoch").mean()
    error = means["gamma"] - exact
    inside = np.unique(geometry["epoch"].values[middle])
    error, means = error.sel(epoch=inside), means.sel(epoch=inside)
    per_step = rms((geometry["gamma"].values - truth["gamma"])[middle])
    z = error / means["gamma_stderr"]
    return {
        "rms error of gamma": rms(error.values),
        "largest error in standard errors": float(abs(z).max()),
        "std of z": float(z.std()),
        "per-step error over it": per_step / rms(error.values),
        "asked for, sqrt(steps) / 2": float(np.sqrt(means["n_steps"].mean()) / 2),
    }


def exact_mode(experiment: Any, directory: str) -> float:
    """Return the largest difference of gamma between an exact recording and two runs."""
    short = replace(experiment, epochs=1)
    path = Path(directory) / "exact.zarr"
    train_workload(short, partial(trajstore.Recorder, path, exact=True))
    recorded = analyzers.path_geometry(trajstore.open_run(path)).compute()
    difference = recorded["gamma"] - two_run(partial(train_workload, short))["gamma"]
    return float(abs(difference).max())


def heavy_columns() -> dict[str, float]:
    """Return the std of z for a gradient that is concentrated in a few columns."""
    torch.manual_seed(0)
    model = nn.Linear(1024, 1200, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    heavy = torch.ones(1024)
    heavy[:: 1024 // 5] = 30.0
    target = torch.randn_like(model.weight)

    def train(observe: Callable[..., Any], epochs: int = 6, steps: int = 50) -> None:
        torch.manual_seed(1)
        model.weight.data.zero_()
        with observe(
            model, optimizer, steps_per_epoch=steps, total_steps=epochs * steps
        ):
            for _ in range(epochs * steps):
                noise = torch.randn_like(target) * heavy * 0.2
                model.weight.grad = (model.weight.detach() - target) * 0.5 + noise
                optimizer.step()

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run.zarr"
        train(partial(trajstore.Recorder, path))
        geometry = analyzers.path_geometry(trajstore.open_run(path)).compute()
    exact = two_run(train)
    z = (geometry["gamma"] - exact["gamma"]) / geometry["gamma_stderr"]
    middle = z.where((z["epoch"] > 0) & (z["epoch"] < 5))
    return {"std of z": float(middle.std())}


def tables(results: dict[str, Any], console: Console) -> None:
    """Print the results as a table and as JSON."""
    table = Table(title="rms error of gamma, 8 KB per step, inner epochs", box=None)
    table.add_column("scheme")
    workloads = results["workloads"]
    for name in workloads:
        table.add_column(name, justify="right")
    for scheme in SCHEMES:
        table.add_row(
            scheme,
            *(f"{w['middle']['schemes'][scheme]:.4f}" for w in workloads.values()),
        )
    for title, part in (("recorded", "middle"), ("first epoch", "first")):
        table.add_row(
            title, *(f"{w[part]['rms error of gamma']:.4f}" for w in workloads.values())
        )
    table.add_row(
        "last epoch",
        *(f"{w['last']['rms error of gamma']:.4f}" for w in workloads.values()),
    )
    table.add_row("white limit", *[f"{WHITE_LIMIT:.4f}"] * len(workloads))
    console.print(table)
    console.print_json(json.dumps(results))


def main(*, quick: bool = False, out: Path = RESULTS / "accuracy.json") -> None:
    """Measure the errors of the recorder.

    Parameters
    ----------
    quick : bool, default: False
        Train for a few epochs only.
    out : Path
        JSON file to write.
    """
    console = Console()
    results: dict[str, Any] = {"white limit": WHITE_LIMIT, "workloads": {}}
    for name, experiment in WORKLOADS.items():
        trained = replace(experiment, epochs=4) if quick else experiment
        results["workloads"][name] = measure(name, trained, console)
    results["heavy columns"] = heavy_columns()
    save_results(results, out)
    tables(results, console)


if __name__ == "__main__":
    tyro.cli(main)
