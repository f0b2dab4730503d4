"""Measure where small nets on digits zigzag, and how that depends on the learning rate.

Four runs use full batches or mini-batches, with a large or a small learning rate. Two more
runs have no valley to zigzag in (random labels, noise as gradients). Branches repeat parts of
two runs with smaller learning rates. The benchmark draws the figures of docs/zigzag.md, and
saves the numbers of its tables. Takes about three minutes on a CPU.
"""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from figures import save_figure
from rich.progress import track
from saving import save_results

import analyzers
import trajstore
from analyzers import plots
from analyzers._style import draw_series, new_figure
from train.protocols.branch import branch, branch_path
from train.protocols.record import record
from train.settings import Training
from train.workloads.catalogue import settings_of

PLAIN: Final = replace(settings_of("digits-mlp"), epochs=12, lr=0.3)
FULL: Final = replace(
    PLAIN, full_batch=True, batch_size=1437, epochs=200, lr=0.5, max_steps=None
)
RUNS: Final[dict[str, Training]] = {
    "full batch, lr 0.5": FULL,
    "full batch, lr 0.05": replace(FULL, lr=0.05),
    "mini-batches, lr 0.3": PLAIN,
    "mini-batches, lr 0.03": replace(PLAIN, lr=0.03),
    "random labels, lr 0.3": replace(PLAIN, control="random-labels"),
    "noise for gradients": replace(PLAIN, control="noise-gradients"),
}
LARGE, MINI = "full batch, lr 0.5", "mini-batches, lr 0.3"
BRANCHES: Final[dict[str, tuple[int, dict[float, int]]]] = {
    LARGE: (95, {0.7: 40, 0.5: 56, 0.2: 140, 0.1: 280}),
    MINI: (2, {0.5: 4, 0.2: 10, 0.1: 20, 0.05: 40}),
}
"""By parent: the epoch at which its branches start, and the length of each branch in epochs.

The keys of these lengths are scales, which multiply the parent's learning rate. All branches
of a parent have the same sum of learning rates. The parent is compared up to that sum."""

THRESHOLDS: Final = tuple(np.linspace(0, 0.95, 20))


def main() -> None:
    """Train, measure, draw and save the results."""
    mpl.use("agg")
    with tempfile.TemporaryDirectory() as directory:
        runs = {}
        for i, (name, training) in enumerate(RUNS.items()):
            path = Path(directory) / f"{i}.zarr"
            record(
                training,
                path,
                partial(track, description=name),
                branch_at=[BRANCHES[name][0]] if name in BRANCHES else [],
                reference_every=50 if training.full_batch else None,
            )
            runs[name] = trajstore.open_run(path)
        segments = {name: analyzers.zigzag_segments(run) for name, run in runs.items()}
        scales = {name: with_branches(runs[name], *BRANCHES[name]) for name in BRANCHES}
        draw(runs, segments, scales)
    found = {name: numbers(run_segments) for name, run_segments in segments.items()}
    results = {"runs": found, "scales": {n: by_scale(s) for n, s in scales.items()}}
    save_results(results, "zigzag")


def with_branches(
    parent: trajstore.Run, epoch: int, lengths: dict[float, int]
) -> xr.Dataset:
    """Record branches of a run, and compare them with the run up to the same length."""
    branches = []
    for scale, epochs in lengths.items():
        path = branch_path(parent, epoch, scale, None)
        progress = partial(track, description=f"learning rate x {scale:g}")
        branch(parent, epoch, scale, path, progress, epochs=epochs)
        branches.append(trajstore.open_run(path))
    rates = branches[0].steps["lr"].values.sum()
    first = branches[0].attrs["branch"]["step"]
    is_compared = np.cumsum(parent.steps["lr"].values[first:]) < rates * (1 + 1e-9)
    length = parent.steps["update_norm"].values[first:][is_compared].sum()
    return analyzers.compare_branches(parent, branches, length=float(length))


def by_scale(scales: xr.Dataset) -> dict[str, Any]:
    """Return the numbers that the tables show of a parent and of its branches."""
    labels = ["parent", *(f"x {s:g}" for s in scales["lr_scale"].values[1:])]
    return {label: numbers(scales.isel(branch=i)) for i, label in enumerate(labels)}


def draw(
    runs: dict[str, trajstore.Run],
    segments: dict[str, xr.Dataset],
    scales: dict[str, xr.Dataset],
) -> None:
    """Draw all figures."""
    figure, axes = plt.subplots(
        2, 3, figsize=(12, 5.6), layout="constrained", sharey=True
    )
    for (name, run_segments), ax in zip(segments.items(), axes.flat, strict=True):
        plots.zigzag_segments(run_segments, ax=ax, title=name)
    axes[0, 0].legend(
        fontsize="small", frameon=False, loc="center right", markerscale=3
    )
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    save_figure(figure, "zigzag/runs", dpi=90)

    figure, [[ax]] = new_figure(figsize=(6.5, 3.6))
    for name, run in runs.items():
        shares = analyzers.zigzag_shares(run, windows=[11], thresholds=THRESHOLDS)
        of_steps = shares["step_share"].sel(kind="zigzag").isel(window=0)
        draw_series(ax, np.asarray(THRESHOLDS), of_steps.values, label=name)
    ax.set(
        xlabel="threshold",
        ylabel="share of steps",
        title="share of zigzag steps by threshold",
    )
    ax.legend(fontsize="small", frameon=False)
    save_figure(figure, "zigzag/thresholds", dpi=90)

    for name, file in ((LARGE, "full-batch"), (MINI, "mini-batches")):
        curve = analyzers.lag_curve(runs[name])
        drawn = plots.zigzag(segments[name], curve, title=name)
        save_figure(drawn, f"zigzag/{file}", dpi=85)

    figure, axes = plt.subplots(1, 2, figsize=(12, 2.8), layout="constrained")
    for name, ax in zip((LARGE, MINI), axes, strict=True):
        plots.zigzag_layers(analyzers.zigzag_layers(runs[name]), ax=ax)
        ax.set_title(f"{name}: by tensor", fontsize="medium")
    save_figure(figure, "zigzag/layers", dpi=90)

    for name, file in ((LARGE, "full-batch"), (MINI, "mini-batches")):
        title = f"{name}, from epoch {BRANCHES[name][0]} on, and its branches"
        drawn = plots.compare_branches(scales[name], title=title)
        save_figure(drawn, f"zigzag/scales-{file}", dpi=80)


def numbers(segments: xr.Dataset) -> dict[str, Any]:
    """Return the numbers of one run or branch that the tables show."""
    zigzag, smooth = segments.sel(kind="zigzag"), segments.sel(kind="smooth")
    shares = {
        name: float(zigzag[name])
        for name in (
            *("step_share", "path_share", "decrease"),
            *("decrease_stderr", "decrease_share", "decrease_share_stderr"),
        )
    }
    cosine = segments["cosine"]
    return shares | {
        "smooth_share": float(smooth["step_share"]),
        "total_decrease": float(segments["decrease"].sum()),
        "mean_cosine": float(cosine.mean()),
        "std_of_cosine": float(cosine.std()),
        "n_steps": int(segments["n_steps"]) if "n_steps" in segments else len(cosine),
    }


if __name__ == "__main__":
    main()
