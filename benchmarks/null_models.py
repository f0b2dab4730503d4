"""Record a training run and its null models, and compare three analyses of them.

The sweep "controls" trains a fully connected net on digits with plain SGD, and repeats the run
with random labels, with label noise, with noise as gradients, and as a random walk. Takes about
two minutes on 2 cores. The figure goes to docs/images/null-models.png, and numbers to
results/null_models.json, from which benchmarks/readme.py writes them into the page.
"""

import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import tyro
import xarray as xr
from figures import save_figure
from rich.progress import track
from saving import save_results

import analyzers
import trajstore
from analyzers.plots import Curve, Panel, draw_panels
from train.protocols.record import record
from train.protocols.sweep import load_sweep

LAGS = (1, 2, 5, 10, 20, 50)
PROBES = 1 << 14
"""Number of probes. With this number, all lagged cosines of a run share an error of 0.008."""


def adjacent_cosine(run: trajstore.Run) -> xr.DataArray:
    """Return the exact cosine between each gradient and the previous gradient."""
    steps = run.steps[["grad_dot_previous", "grad_norm"]].compute()
    norms = steps.grad_norm * steps.grad_norm.shift(step=1)
    cosine: xr.DataArray = steps.grad_dot_previous.sum("layer") / norms
    return cosine


def mean_and_error(values: Any) -> list[float]:
    """Return the mean of the finite values and its standard error."""
    values = np.asarray(values)
    values = values[np.isfinite(values)]
    return [float(values.mean()), float(values.std() / len(values) ** 0.5)]


def measure(run: trajstore.Run) -> dict[str, Any]:
    """Return gamma and the adjacent and lagged cosines, by epoch and mid-run."""
    geometry = analyzers.path_geometry(run).compute()
    excess = analyzers.excess_gamma(geometry, run)
    cosine = adjacent_cosine(run)
    lagged = analyzers.lagged_gradients(run, lags=LAGS, every=3).compute()
    middle = slice(run.n_steps // 4, 3 * run.n_steps // 4)
    cosines = cosine.groupby("epoch")
    return {
        "means": analyzers.epoch_means(geometry).isel(epoch=slice(None, -1)),
        "walk": excess.gamma_null.groupby("epoch").mean().isel(epoch=slice(None, -1)),
        "cosine": (cosines.mean(), cosines.std() / cosines.count() ** 0.5),
        "lags": [mean_and_error(lagged.cosine.sel(lag=lag)) for lag in LAGS],
        "numbers": {
            "gamma": mean_and_error(geometry.gamma[middle]),
            "walk of the same steps": mean_and_error(excess.gamma_null[middle])[0],
            "excess": mean_and_error(excess.excess[middle]),
            "adjacent cosine": mean_and_error(cosine),
            "adjacent cosine, std": float(cosine.std()),
            "cosine 5 steps apart": mean_and_error(lagged.cosine.sel(lag=5)),
        },
    }


def errors_of_equation_8(run: trajstore.Run) -> dict[str, float]:
    """Return statistics of the errors of a walk's gamma, in standard errors."""
    # Theory predicts 1 / sqrt(T - k) in step k of T: equation (8) of docs/null-models.md.
    geometry = analyzers.path_geometry(run).compute()
    expected = (run.n_steps - np.arange(run.n_steps)) ** -0.5
    spread = run.layout.n_params**-0.5
    z = (geometry.gamma - expected) / np.hypot(geometry.gamma_stderr, spread)
    return {
        "steps": run.n_steps,
        "parameters": run.layout.n_params,
        "mean of z": float(z.mean()),
        "std of z": float(z.std()),
        "largest |z|": float(abs(z).max()),
    }


def draw(results: dict[str, dict[str, Any]]) -> None:
    """Draw one panel for each analysis."""
    gamma, cosine, lags = [], [], []
    for name, result in results.items():
        means, (mean, stderr) = result["means"], result["cosine"]
        # The curve of the random walk covers that of noise gradients.
        width = 3.5 if name == "noise-gradients" else 1.2
        gamma.append(
            Curve(
                name,
                means.epoch.values,
                means.gamma.values,
                means.gamma_stderr.values,
                width=width,
            )
        )
        cosine.append(
            Curve(name, mean.epoch.values, mean.values, stderr.values, width=width)
        )
        y, error = np.array(result["lags"]).T
        lags.append(Curve(name, np.arange(len(LAGS)), y, error, width=width))
    walk = results["random-walk"]["walk"]
    gamma.append(
        Curve(r"$1/\sqrt{T-k}$", walk.epoch.values, walk.values, style="--", width=1.6)
    )
    panels = [
        Panel(title=title, ylabel=ylabel, curves=tuple(curves), needs="", xlabel=xlabel)
        for title, ylabel, xlabel, curves in (
            ("cosine of gradient and $x - x^*$", r"$\gamma$", "epoch", gamma),
            ("cosine of adjacent gradients", "cosine", "epoch", cosine),
            ("cosine of gradients several steps apart", "cosine", "steps apart", lags),
        )
    ]
    figure = draw_panels(panels, n_columns=3)
    figure.axes[0].set_ylim(top=0.95)
    figure.axes[2].set_xticks(range(len(LAGS)), [str(lag) for lag in LAGS])
    for ax in figure.axes[1:]:
        ax.get_legend().remove()
    save_figure(figure, "null-models")


def main(*, epochs: int = 15) -> None:
    """Record and measure all runs, draw the figure and save the results.

    Parameters
    ----------
    epochs : int
        Epochs of every run.
    """
    mpl.use("agg")
    measured, numbers = {}, {}
    with tempfile.TemporaryDirectory() as directory:
        planned = load_sweep("controls", epochs=epochs).runs
        for entry in track(planned, description="null models"):
            path = Path(directory) / f"{entry.name}.zarr"
            record(entry.training, path, probes=PROBES)
            run = trajstore.open_run(path)
            measured[entry.name] = measure(run)
            numbers[entry.name] = measured[entry.name]["numbers"]
            if entry.name == "random-walk":
                eighth = errors_of_equation_8(run)
    draw(measured)
    results = {"runs": numbers, "equation 8": eighth}
    save_results(results, "null_models")


if __name__ == "__main__":
    tyro.cli(main)
