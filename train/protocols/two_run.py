"""The published protocol: train twice, and measure the second run against the first.

Algorithm 1 of C. Guille-Escuret et al., "No Wrong Turns: The Simple Geometry Of Neural
Networks Optimization Paths", 2023, arXiv 2306.11922. It costs two trainings that must be
identical, and is exact: the ground truth for what is computed from a single recording.
Unlike the published code it checks that both runs end at the same point.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor, nn
from torch.optim import Optimizer

from train.observer import Deaf, Log, Observer


def two_run(
    train: Callable[[Observer], object],
    *,
    layers: bool = False,
    direction: str = "gradient",
    weight_decay: float = 0.0,
) -> xr.Dataset:
    """Measure RSI, EB and gamma exactly, relative to the final iterate.

    Parameters
    ----------
    train : callable
        Trains from the beginning under the observer it is given; called twice, and must
        do the same both times.
    layers : bool, default: False
        Tell the parameter tensors apart.
    direction : str, default: "gradient"
        What is measured: the gradient of every step; ``"update"``, what the step changes;
        or the name that the training gives to ``measure``.
    weight_decay : float, default: 0.0
        Times the parameters is added to a gradient.

    Returns
    -------
    xarray.Dataset
        Dimension ``step`` with the coordinates ``epoch`` and ``iteration``, and
        ``layer`` if asked for. Variables ``gamma``, ``rsi``, ``eb``, ``lolr`` and
        ``distance``, computed in float64 from the gradients that the optimizer finds.
        NaN where a norm is 0. ``step`` is how many optimizer steps had been taken.

    Raises
    ------
    RuntimeError
        If the second run does not end where the first did, bit for bit, or if there was
        no step.
    """
    ends: list[dict[str, Tensor]] = []
    measured: list[tuple[Tensor, Tensor, Tensor]] = []
    steps: list[int] = []
    names: list[str] = []
    epoch_lengths: list[int] = []

    @contextmanager
    def first(
        model: nn.Module,
        optimizer: Optimizer,
        *,
        steps_per_epoch: int,
        total_steps: int,
    ) -> Iterator[Log]:
        del total_steps
        names.extend(_held(model, optimizer))
        epoch_lengths.append(steps_per_epoch)
        yield Deaf()
        ends.append(_copy(_held(model, optimizer)))

    @contextmanager
    def second(
        model: nn.Module,
        optimizer: Optimizer,
        *,
        steps_per_epoch: int,
        total_steps: int,
    ) -> Iterator[Log]:
        del steps_per_epoch, total_steps
        target = {name: end.double() for name, end in ends[0].items()}
        parameters = _held(model, optimizer)
        before: dict[str, Tensor] = {}
        n_steps = 0

        def gradients() -> dict[str, Tensor]:
            return {
                name: _gradient(p) + weight_decay * p.detach().double()
                for name, p in parameters.items()
            }

        def look(x: dict[str, Tensor], vectors: dict[str, Tensor]) -> None:
            measured.append(_products(x, vectors, target))
            steps.append(n_steps)

        def before_step(_optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
            before.update(_copy(parameters))
            if direction == "gradient":
                look(parameters, gradients())

        def after_step(_optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
            nonlocal n_steps
            if direction == "update":
                now = {name: p.detach().double() for name, p in parameters.items()}
                look(before, {name: now[name] - before[name].double() for name in now})
            n_steps += 1

        class Looking(Deaf):
            def measure(self, name: str, **_scalars: float | Tensor) -> None:
                if name == direction:
                    look(parameters, gradients())

        handles = (
            optimizer.register_step_pre_hook(before_step),
            optimizer.register_step_post_hook(after_step),
        )
        try:
            yield Looking()
        finally:
            for handle in handles:
                handle.remove()
        ends.append(_copy(parameters))

    train(first)
    train(second)
    _check_same_end(*ends)
    if not measured:
        what = "no optimizer step" if direction == "gradient" else f"no {direction!r}"
        raise RuntimeError(f"The training made {what}; nothing was measured.")
    h, squares, gradient_sq = (
        torch.stack(column).cpu().numpy() for column in zip(*measured, strict=True)
    )
    step = np.array(steps)
    result = _dataset(
        h, squares, gradient_sq, names, step, epoch_lengths[0], layers=layers
    )
    return result.assign_attrs(direction=direction, weight_decay=weight_decay)


def _held(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the model's parameters that the optimizer holds, by name."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {name: p for name, p in model.named_parameters() if id(p) in held}


def _copy(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter, dtype=torch.float64)
    return parameter.grad.detach().to_dense().double()


def _products(
    x: dict[str, Tensor], vectors: dict[str, Tensor], target: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return <g, x - x*>, |x - x*|^2 and |g|^2 by layer, float64, for the vectors g."""
    h, squares, vector_sq = [], [], []
    for name, vector in vectors.items():
        to_target = (x[name].detach().double() - target[name]).flatten()
        flat = vector.flatten()
        h.append(flat @ to_target)
        squares.append(to_target @ to_target)
        vector_sq.append(flat @ flat)
    return torch.stack(h), torch.stack(squares), torch.stack(vector_sq)


def _check_same_end(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    differing = [
        name
        for name in first
        if not torch.allclose(first[name], second[name], 0, 0, equal_nan=True)
    ]
    if differing:
        raise RuntimeError(
            f"The second run did not end where the first did: {len(differing)} of "
            f"{len(first)} tensors differ, {differing[:3]} among them. Nothing is "
            "reported. The protocol needs identical runs: fix all seeds, and choose "
            "deterministic kernels."
        )


def _dataset(
    h: Any,
    squares: Any,
    gradient_sq: Any,
    names: list[str],
    step: npt.NDArray[np.int64],
    steps_per_epoch: int,
    *,
    layers: bool,
) -> xr.Dataset:
    dims: tuple[str, ...] = ("step", "layer")
    if not layers:
        h, squares, gradient_sq = (a.sum(1) for a in (h, squares, gradient_sq))
        dims = dims[:1]
    distance, norm = np.sqrt(squares), np.sqrt(gradient_sq)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {
            "gamma": h / (norm * distance),
            "rsi": h / squares,
            "eb": norm / np.where(distance > 0, distance, np.nan),
            "lolr": h / gradient_sq,
            "distance": distance,
        }
    coordinates: dict[str, Any] = {
        "step": step,
        "epoch": ("step", step // steps_per_epoch),
        "iteration": ("step", step % steps_per_epoch),
    }
    if layers:
        # Fixed-width strings have no place in Zarr's specification; these have.
        coordinates["layer"] = np.array(names, object)
    attributes = {"reference": "final", "source": "exact two-run protocol"}
    variables = {name: (dims, value) for name, value in values.items()}
    return xr.Dataset(variables, coordinates, attributes)
