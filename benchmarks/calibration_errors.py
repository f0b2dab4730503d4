"""Exact geometry of a training whose iterates and gradients are kept, and scores of estimates."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from calibration_loops import Loop
from torch import nn

import analyzers

Array = npt.NDArray[Any]

DIVIDED = ("gamma", "rsi", "eb")
IMPRECISE = 0.3
"""Relative error of the distance above which means leave out quantities divided by it."""

ROUNDING = 1e-6
"""Relative errors that float32 explains; smaller standard errors are not compared."""


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
    explained = (stderrs < ROUNDING) & (np.abs(errors) < 3 * ROUNDING)
    finite = np.isfinite(errors) & np.isfinite(stderrs)
    counted = finite & ~explained
    result = {
        "error": _rms(errors[finite]),
        "missing": float(1 - finite.mean()),
    }
    if not counted.any():
        # There is nothing to score: everything is as exact as stated.
        return result | {"z": 1.0, "z stderr": 0.0, "largest z": 0.0, "t": 0.0}
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
        if name in DIVIDED:
            # Means leave out steps whose distance is imprecise.
            relative = geometry["distance_stderr"] / geometry["distance"]
            averaged &= relative.values <= IMPRECISE
        largest = largest_values(truth)[name][:, 0]
        rows = [averaged & (epochs == epoch) for epoch in means["epoch"].values]
        true, unit = (
            np.array([column[row].mean() if row.any() else np.nan for row in rows])
            for column in (truth[name][:, 0], largest)
        )
        errors.append((means[name].values - true) / unit)
        stderrs.append(means[f"{name}_stderr"].values / unit)
    return Compared(np.array(errors)[..., None], np.array(stderrs)[..., None])


def _columns(values: Array) -> Array:
    return values[:, None] if values.ndim == 1 else values
