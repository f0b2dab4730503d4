"""Measure sharpness, smoothness, convexity and scale invariance of small networks on digits.

The benchmark draws the figures of docs/sharpness.md and saves the numbers for its tables.
Takes about four minutes on one core; complete runs in the directory are reused.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
import xarray as xr
from figures import save_figure
from rich.progress import track
from saving import save_results

import analyzers
from analyzers import plots
from train.protocols.chords import losses_between
from train.protocols.record import is_complete, record_resumably
from train.settings import Training
from train.workloads.catalogue import settings_of
from trajstore import Run, open_run

DESCENT: dict[str, tuple[str, dict[str, Any]]] = {
    "gd-0.3": ("gradient descent, 0.3", {"lr": 0.3, "epochs": 1000}),
    "gd-0.4": ("gradient descent, 0.4", {"lr": 0.4, "epochs": 800}),
    "momentum": (
        "momentum 0.9, 0.4",
        {"lr": 0.4, "epochs": 1000, "optimizer": "momentum"},
    ),
    "adam": ("Adam, 0.004", {"lr": 4e-3, "epochs": 600, "optimizer": "adam"}),
    "random-labels": (
        "random labels, 0.4",
        {"lr": 0.4, "epochs": 800, "control": "random-labels"},
    ),
    "noise": (
        "noise as gradients, 0.4",
        {"lr": 0.4, "epochs": 340, "control": "noise-gradients"},
    ),
}
"""The title of each run, and its changes to the settings of the workload."""

SMALL = {"sketch_bits": 4096, "probes": 1024, "reference_every": 50}
MINIBATCH = "minibatch"
RESNET = "resnet"


def settings() -> dict[str, Training]:
    """Return the settings of every run, by name."""
    tanh = replace(settings_of("digits-tanh"), sharpness_every=10)
    chosen = {name: replace(tanh, **changes) for name, (_, changes) in DESCENT.items()}
    chosen[MINIBATCH] = replace(
        tanh,
        full_batch=False,
        batch_size=50,
        epochs=80,
        lr=0.1,
        same_batch_every=2,
        sharpness_every=20,
    )
    chosen[RESNET] = replace(
        settings_of("digits-resnet"),
        optimizer="sgd",
        lr=0.05,
        weight_decay=0.0,
        epochs=5,
    )
    return chosen


def recorded(directory: Path) -> dict[str, Run]:
    """Record the missing runs, and open all runs."""
    runs = {}
    for name, training in settings().items():
        store = directory / f"{name}.zarr"
        if not is_complete(training, store):
            options = {} if name == RESNET else SMALL
            progress = partial(track, description=name)
            record_resumably(training, store, progress, **options)
        runs[name] = open_run(store)
    return runs


def edges(runs: dict[str, Run]) -> dict[str, Any]:
    """Draw sharpness and the stability threshold; return their ratios by run."""
    found = {name: analyzers.edge_of_stability(runs[name]) for name in DESCENT}
    figure, axes = plt.subplots(2, 3, figsize=(12.6, 6.2), layout="constrained")
    for (name, (title, _)), ax in zip(DESCENT.items(), axes.flat, strict=False):
        plots.edge_of_stability(found[name], title=title, ax=ax)
    for ax in axes.flat[len(DESCENT) :]:
        ax.axis("off")
    save_figure(figure, "sharpness/edge")
    return {
        DESCENT[name][0]: {
            "threshold": float(edge.threshold[-1]),
            "first ratio": float(edge.ratio[0]),
            "last ratio": float(edge.ratio[-1]),
            **{
                key: None if np.isnan(edge[key]) else float(edge[key])
                for key in (
                    "reached",
                    "ratio_median",
                    "ratio_min",
                    "ratio_max",
                    "share_near",
                )
            },
            "evaluations": int((edge.step >= edge.reached).sum()),
        }
        for name, edge in found.items()
    }


def smoothness(runs: dict[str, Run]) -> dict[str, Any]:
    """Draw smoothness next to sharpness; return their ratios."""
    full, mini = runs["gd-0.3"], runs[MINIBATCH]
    along = analyzers.smoothness(full).compute()
    same = analyzers.smoothness(mini, measurement="same_batch").compute()
    following = analyzers.smoothness(mini).compute()
    of_full, of_mini = (analyzers.edge_of_stability(run) for run in (full, mini))
    drawn = {
        "gradient descent, 0.3": {"gradients of steps": along, "sharpness": of_full},
        "batches of 50, 0.1": {
            "next batch": following,
            "same batch": same,
            "sharpness": of_mini,
        },
    }
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.1), layout="constrained")
    for (title, lines), ax in zip(drawn.items(), axes, strict=True):
        for label, data in lines.items():
            plots.smoothness(data, title=title, label=label, ax=ax)
    save_figure(figure, "sharpness/smoothness")
    late = slice(int(of_full.reached) + 200, None)
    quarter = mini.n_steps // 4 * 3
    return {
        "full batch, before the threshold: smoothness over sharpness": over(
            along.sel(step=slice(20, int(of_full.reached) - 100)), of_full
        ),
        "full batch, at the edge: smoothness over sharpness": over(
            along.sel(step=late), of_full
        ),
        "batches of 50, last quarter: same batch over sharpness": over(
            same.sel(step=slice(quarter, None)), of_mini
        ),
        "batches of 50, last quarter: next batch over sharpness": over(
            following.sel(step=slice(quarter, None)), of_mini
        ),
    }


def over(found: xr.Dataset, edge: xr.Dataset) -> float:
    """Return the ratio of median smoothness to median sharpness in the same steps."""
    sharpness = edge.sharpness.sel(step=slice(found.step[0], found.step[-1]))
    return float(found.smoothness.median() / sharpness.median())


def convexity(runs: dict[str, Run]) -> dict[str, Any]:
    """Draw the slack of convexity; return the shares of steps that violate convexity."""
    run = runs["gd-0.4"]
    chord = losses_between(run, 0, "final")
    towards = analyzers.convexity(
        run, reference_loss=float(chord.sel(fraction=1.0))
    ).compute()
    near = analyzers.adjacent_convexity(run)
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.1), layout="constrained")
    title = "tangents at the iterates, towards the end"
    plots.convexity(towards, title=title, ax=axes[0])
    plots.convexity(near, title="tangents at neighbouring iterates", ax=axes[1])
    save_figure(figure, "sharpness/convexity")
    known = near.slack.notnull()
    return {
        "tangents that lie above the loss at the end": float(
            towards.is_violated.mean()
        ),
        "tangents that lie above the loss at a neighbour": float(
            (near.is_violated | near.is_violated_back).where(known).mean()
        ),
        "points where the loss lies above the chord from start to end": float(
            analyzers.chord_convexity(chord)
            .is_violated.sel(fraction=slice(0.05, 0.95))
            .mean()
        ),
    }


def invariance(runs: dict[str, Run]) -> dict[str, Any]:
    """Draw the scale invariance of layers; compare convolutions with other layers."""
    found = analyzers.scale_invariance(runs[RESNET]).compute()
    plots.scale_invariance(found)
    save_figure(plt.gcf(), "sharpness/invariance")
    convolutions = [
        name
        for name, shape in zip(
            runs[RESNET].layout.names, runs[RESNET].layout.shapes, strict=True
        )
        if len(shape) == 4
    ]
    of_convolutions = found.sel(layer=convolutions)
    others = found.drop_sel(layer=convolutions)
    growth = of_convolutions.growth / of_convolutions.expected_growth
    return {
        "convolutions": len(convolutions),
        "called invariant": found.layer.values[found.is_invariant.values].tolist(),
        "largest |cosine| of convolutions": float(of_convolutions.cosine_max.max()),
        "smallest largest |cosine| of others": float(others.cosine_max.min()),
        "growth over expected, convolutions": [
            float(growth.min()),
            float(growth.max()),
        ],
    }


def main(*, runs: Path = Path("runs/sharpness")) -> None:
    """Train, measure, draw and save the results.

    Parameters
    ----------
    runs : Path
        Directory for the stores.
    """
    mpl.use("agg")
    # For small nets, synchronising several threads costs more time than they save.
    torch.set_num_threads(1)
    runs.mkdir(parents=True, exist_ok=True)
    opened = recorded(runs)
    results = {
        "edge": edges(opened),
        "smoothness": smoothness(opened),
        "convexity": convexity(opened),
        "invariance": invariance(opened),
    }
    save_results(results, "sharpness")


if __name__ == "__main__":
    tyro.cli(main)
