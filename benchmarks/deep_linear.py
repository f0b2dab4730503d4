"""Record deep linear networks, compare them with their closed form, and draw figures.

The figures show singular modes next to those of gradient flow, effective ranks, and two
quantities by step size: the error of the modes, and the drift of conserved quantities. Modes
and ranks are also shown for networks with tanh or ReLU between the layers. Takes about two
minutes on 2 cores. Figures go to docs/images/deep-linear, and numbers to
results/deep_linear.json, from which benchmarks/readme.py writes them into docs/deep-linear.md.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
from figures import save_figure
from rich.progress import track
from saving import save_results
from torch import nn

import analyzers
import trajstore
from analyzers import plots
from analyzers._colors import COLORS
from analyzers._style import draw_series, new_figure, ordered_colors
from analyzers.deep_linear.arrays import effective_rank
from analyzers.deep_linear.modes import iterates
from train.models.deep_linear import random_weights, stack
from train.protocols.record import record
from train.workloads import deep_linear
from train.workloads.catalogue import settings_of

DEPTHS = (2, 3, 4)
LR, UNTIL = 0.01, 30.0
"""Step size and time span of the figures with a time axis."""

RATES, SHORT = (0.08, 0.04, 0.02, 0.01, 0.005), 8.0
"""Step sizes and time span of the figures with a step-size axis."""

WIDTH, NONLINEAR_LR = 32, 0.02
"""Width and step size of networks with activations."""

ACTIVATIONS: dict[str, Callable[[], nn.Module] | None] = {
    "linear": None,
    "tanh": nn.Tanh,
    "ReLU": nn.ReLU,
}


@contextmanager
def recorded(name: str, lr: float, time: float) -> Iterator[trajstore.Run]:
    """Train a workload for a time span, and yield its exact recording."""
    steps = round(time / lr)
    training = replace(settings_of(name), lr=lr, max_steps=steps, epochs=steps)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run.zarr"
        record(training, path, exact=True)
        yield trajstore.open_run(path)


def modes_of(name: str, lr: float, time: float) -> xr.Dataset:
    """Return the singular modes of a workload over a time span."""
    with recorded(name, lr, time) as run:
        return analyzers.linear_modes(run)


def outputs_in_modes(activation: Callable[[], nn.Module] | None) -> dict[str, Any]:
    """Train three layers with an activation; return the modes of mean f(x) x^T."""
    # This mean over all data replaces the product of the weight matrices. Without an
    # activation, mean and product are equal.
    torch.manual_seed(0)
    data: Any = deep_linear.linear_data(0).train
    inputs, targets = data[0]
    widths = [deep_linear.N_INPUTS, WIDTH, WIDTH, deep_linear.N_OUTPUTS]
    model = stack(random_weights(widths, initial=deep_linear.INITIAL), activation)
    optimizer = torch.optim.SGD(model.parameters(), lr=NONLINEAR_LR)
    n_steps = round(2 * UNTIL / NONLINEAR_LR)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run.zarr"
        with trajstore.Recorder(
            path, model, optimizer, steps_per_epoch=100, exact=True
        ) as recorder:
            for _ in range(n_steps):
                optimizer.zero_grad()
                loss = deep_linear.half_sum(model(inputs), targets)
                loss.backward()
                recorder.log(loss=loss)
                optimizer.step()
        run = trajstore.open_run(path)
        between = {
            None: lambda hidden: hidden,
            nn.Tanh: np.tanh,
            nn.ReLU: partial(np.maximum, 0),
        }[activation]
        x = inputs.double().numpy()
        correlations = []
        for _, tensors in iterates(run):
            hidden = x
            for i, weight in enumerate(tensors.values()):
                hidden = (between(hidden) if i else hidden) @ weight.swapaxes(1, 2)
            correlations.append(hidden.swapaxes(1, 2) @ x / len(x))
        loss = run.steps["loss"].values
    correlation = np.concatenate(correlations)
    left, _, right = np.linalg.svd(
        deep_linear.correlation(0).double().numpy(), full_matrices=False
    )
    return {
        "time": NONLINEAR_LR * np.arange(n_steps),
        "modes": np.einsum("im,tij,mj->tm", left, correlation, right),
        "effective_rank": effective_rank(np.linalg.svd(correlation)[1]),
        "loss": loss,
    }


def draw_trajectories(runs: dict[int, xr.Dataset]) -> None:
    """Draw the modes of every depth, next to gradient flow."""
    figure, axes = plt.subplots(
        1, 3, figsize=(12, 3.6), layout="constrained", sharey=True
    )
    for ax, modes in zip(axes, runs.values(), strict=True):
        plots.mode_trajectories(modes, ax=ax)
    for ax in axes[1:]:
        ax.get_legend().remove()
        ax.set_ylabel("")
    save_figure(figure, "deep-linear/trajectories")


def draw_step_sizes(
    errors: dict[int, list[float]], drifts: dict[int, list[float]]
) -> None:
    """Draw errors and drifts against the step size, with lines of slope 1."""
    figure, [axes] = new_figure(1, 2, figsize=(9, 3.6))
    titles = (
        (
            {depth: [100 * e for e in of_depth] for depth, of_depth in errors.items()},
            "largest error, % of the largest strength",
            "aligned weights: distance from the flow",
        ),
        (
            drifts,
            "drift of $W_{l+1}^T W_{l+1} - W_l W_l^T$",
            "random weights: the conserved quantity",
        ),
    )
    for ax, (found, ylabel, title) in zip(axes, titles, strict=True):
        ax.set(xscale="log", yscale="log")
        for depth, values in found.items():
            draw_series(ax, np.array(RATES), np.array(values), label=f"{depth} layers")
        line = values[0] / RATES[0] * np.array(RATES) / 3
        ax.loglog(RATES, line, "--", color="0.5", label="slope 1")
        ax.set(xlabel=r"step size $\eta$", ylabel=ylabel)
        ax.set_title(title, fontsize="medium")
        ax.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
        ax.minorticks_off()
        ax.legend(fontsize="small", frameon=False)
    percents = (0.1, 0.2, 0.5, 1, 2, 5)
    axes[0].set_yticks(percents, [f"{percent:g}" for percent in percents])
    save_figure(figure, "deep-linear/step-sizes")


def draw_conserved(
    aligned: dict[int, xr.Dataset], random: dict[int, xr.Dataset]
) -> None:
    """Draw the conserved quantity and the effective rank of both initialisations."""
    figure, [axes] = new_figure(1, 3, figsize=(12, 3.6))
    for color, (depth, modes) in zip(COLORS, random.items(), strict=False):
        later = modes.isel(step=slice(1, None))
        label = f"{depth} layers"
        axes[0].semilogy(later.time, later.imbalance, color=color, label=label)
        axes[0].semilogy(later.time, later.drift, "--", color=color)
        for ax, found in ((axes[1], aligned[depth]), (axes[2], modes)):
            time, rank = found.time.values, found.effective_rank.values
            draw_series(ax, time, rank, color=color, label=label)
    axes[0].set(
        title="random weights: largest entry of\n$W_{l+1}^T W_{l+1} - W_l W_l^T$ (dashed: its change)"
    )
    axes[1].set(title="aligned weights: effective rank")
    axes[2].set(title="random weights: effective rank")
    for ax in axes:
        ax.set_xlabel("time $t$ of the gradient flow")
    for ax in axes[1:]:
        ax.set_ylim(0, deep_linear.N_OUTPUTS + 0.3)
    axes[2].legend(fontsize="small", frameon=False)
    save_figure(figure, "deep-linear/conserved")


def draw_nonlinear(found: dict[str, dict[str, Any]]) -> None:
    """Draw the modes and effective ranks of mean f(x) x^T by activation."""
    figure, [axes] = new_figure(1, 4, figsize=(14, 3.4))
    colors = ordered_colors(deep_linear.N_OUTPUTS)
    for ax, (name, result) in zip(axes, found.items(), strict=False):
        for mode, color, strength in zip(
            result["modes"].T, colors, deep_linear.STRENGTHS, strict=True
        ):
            ax.plot(
                result["time"], mode, color=color, label=rf"$\lambda$ = {strength:g}"
            )
            ax.axhline(strength, color=color, linewidth=0.6, linestyle=":")
        ax.set(title=f"{name}, 3 layers", ylim=(-0.05, 1.1))
        draw_series(axes[3], result["time"], result["effective_rank"], label=name)
    axes[0].set_ylabel(r"$u_\mu^T\, \overline{f(x)\, x^T}\, v_\mu$")
    axes[0].legend(fontsize="small", frameon=False, loc=(0.62, 0.6))
    axes[3].set(title=r"effective rank of $\overline{f(x)\, x^T}$", ylim=(0, 4.3))
    axes[3].legend(fontsize="small", frameon=False)
    for ax in axes:
        ax.set_xlabel(r"time $\eta k$")
    save_figure(figure, "deep-linear/nonlinear")


def slope(values: list[float]) -> float:
    """Return the exponent with which values grow with the step size."""
    return float(np.polyfit(np.log(RATES), np.log(values), 1)[0])


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Return the half times of the modes, and their values at the end of the run."""
    halves = []
    for mode, strength in zip(result["modes"].T, deep_linear.STRENGTHS, strict=True):
        above = np.flatnonzero(mode >= strength / 2)
        halves.append(float(result["time"][above[0]]) if len(above) else None)
    return {
        "half times": halves,
        "last modes": result["modes"][-1].tolist(),
        "smallest effective rank": float(result["effective_rank"].min()),
        "last effective rank": float(result["effective_rank"][-1]),
        "last loss over first": float(result["loss"][-1] / result["loss"][0]),
    }


def main() -> None:
    """Train, measure, draw and save the results."""
    mpl.use("agg")
    aligned, random, errors, drifts = {}, {}, {}, {}
    for depth in track(DEPTHS, description="deep linear networks"):
        names = (f"deep-linear-{depth}", f"deep-linear-{depth}-random")
        aligned[depth], random[depth] = (modes_of(name, LR, UNTIL) for name in names)
        short = [[modes_of(name, lr, SHORT) for lr in RATES] for name in names]
        errors[depth] = [float(abs(modes.error).max()) for modes in short[0]]
        drifts[depth] = [float(modes.drift[-1]) for modes in short[1]]
    found = {
        name: outputs_in_modes(activation)
        for name, activation in track(ACTIVATIONS.items(), description="activations")
    }
    draw_trajectories(aligned)
    draw_step_sizes(errors, drifts)
    draw_conserved(aligned, random)
    draw_nonlinear(found)
    results = {
        "depths": {
            str(depth): {
                "largest error over largest strength, %": dict(
                    zip(map(str, RATES), (100 * e for e in errors[depth]), strict=True)
                ),
                "exponent of the error": slope(errors[depth]),
                "exponent of the drift": slope(drifts[depth]),
                "drift over imbalance": float(
                    random[depth].drift[-1] / random[depth].imbalance[0]
                ),
                "half times": aligned[depth].half_time.values.tolist(),
                "half times of the flow": aligned[
                    depth
                ].half_time_closed_form.values.tolist(),
            }
            for depth in DEPTHS
        },
        "between layers": {name: summary(result) for name, result in found.items()},
    }
    save_results(results, "deep_linear")


if __name__ == "__main__":
    main()
