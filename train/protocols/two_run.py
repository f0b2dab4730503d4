"""Two-run protocol: train twice, and measure the second run against the end of the first.

This is algorithm 1 of C. Guille-Escuret et al., "No Wrong Turns: The Simple Geometry Of Neural
Networks Optimization Paths", 2023, arXiv 2306.11922. It needs two identical training runs and
is exact, so it gives the ground truth for results that are computed from a single recording.
Unlike the published code, it checks that both runs end at the same point.
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

from train.observer import Log, NullLog, Observer
from trajstore.format.attrs import UPDATE


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
        Trains from the beginning under the given observer. It is called twice, and must take
        the same steps both times.
    layers : bool, default: False
        Compute the geometry of each layer separately.
    direction : str, default: "gradient"
        The direction to measure: ``"gradient"``, ``"update"``, or a name that the loop passes
        to ``measure``.
    weight_decay : float, default: 0.0
        Multiple of the parameters that is added to every gradient.

    Returns
    -------
    xarray.Dataset
        Variables ``gamma``, ``rsi``, ``eb``, ``lolr`` (locally optimal learning rate) and
        ``distance``, computed in float64 from the gradients that the optimizer finds.
        Quotients are NaN if their divisor is 0.
        The dimensions are ``step``, with the coordinates ``epoch`` and ``iteration``, and
        ``layer`` if `layers` is true. ``step`` is the number of optimizer steps before the
        measurement.

    Raises
    ------
    RuntimeError
        If the second run does not end where the first did, bit for bit, or if nothing was
        measured.
    """
    ends: list[dict[str, Tensor]] = []
    measured: list[tuple[Tensor, Tensor, Tensor]] = []
    steps: list[int] = []
    names: list[str] = []
    epoch_lengths: list[int] = []

    @contextmanager
    def observe_first(
        model: nn.Module,
        optimizer: Optimizer,
        *,
        steps_per_epoch: int,
        total_steps: int,
    ) -> Iterator[Log]:
        del total_steps
        names.extend(_optimized(model, optimizer))
        epoch_lengths.append(steps_per_epoch)
        yield NullLog()
        ends.append(_copy(_optimized(model, optimizer)))

    @contextmanager
    def observe_second(
        model: nn.Module,
        optimizer: Optimizer,
        *,
        steps_per_epoch: int,
        total_steps: int,
    ) -> Iterator[Log]:
        del steps_per_epoch, total_steps
        target = {name: end.double() for name, end in ends[0].items()}
        parameters = _optimized(model, optimizer)
        before: dict[str, Tensor] = {}
        n_steps = 0

        def gradients() -> dict[str, Tensor]:
            return {
                name: _gradient(p) + weight_decay * p.detach().double()
                for name, p in parameters.items()
            }

        def measure(x: dict[str, Tensor], vectors: dict[str, Tensor]) -> None:
            measured.append(_products(x, vectors, target))
            steps.append(n_steps)

        def before_step(_optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
            before.update(_copy(parameters))
            if direction == "gradient":
                measure(parameters, gradients())

        def after_step(_optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
            nonlocal n_steps
            if direction == UPDATE:
                now = {name: p.detach().double() for name, p in parameters.items()}
                updates = {name: now[name] - before[name].double() for name in now}
                measure(before, updates)
            n_steps += 1

        def measure_now(name: str) -> None:
            if name == direction:
                measure(parameters, gradients())

        handles = (
            optimizer.register_step_pre_hook(before_step),
            optimizer.register_step_post_hook(after_step),
        )
        try:
            yield _MeasureLog(measure_now)
        finally:
            for handle in handles:
                handle.remove()
        ends.append(_copy(parameters))

    train(observe_first)
    train(observe_second)
    _check_same_end(*ends)
    if not measured:
        missing = (
            "no optimizer step"
            if direction == "gradient"
            else f"no measurement {direction!r}"
        )
        raise RuntimeError(f"The run made {missing}; nothing was measured.")
    products, distance_sq, vector_sq = (
        torch.stack(column).cpu().numpy() for column in zip(*measured, strict=True)
    )
    step = np.array(steps)
    result = _dataset(
        products, distance_sq, vector_sq, names, step, epoch_lengths[0], layers=layers
    )
    return result.assign_attrs(direction=direction, weight_decay=weight_decay)


class _MeasureLog:
    """A `Log` that passes the names of measurements on and ignores the rest."""

    def __init__(self, on_measure: Callable[[str], None]) -> None:
        self._on_measure = on_measure

    def log(self, **scalars: float | Tensor) -> None:
        """Ignore scalars."""

    def log_samples(self, indices: Tensor) -> None:
        """Ignore indices of examples."""

    def measure(self, name: str, **_scalars: float | Tensor) -> None:
        """Pass the name to the callback."""
        self._on_measure(name)


def _optimized(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the model's parameters that the optimizer updates, by name."""
    ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {name: p for name, p in model.named_parameters() if id(p) in ids}


def _copy(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter, dtype=torch.float64)
    return parameter.grad.detach().to_dense().double()


def _products(
    x: dict[str, Tensor], vectors: dict[str, Tensor], target: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return <g, x - x*>, |x - x*|^2 and |g|^2 for the vectors g, each float64 (layer,)."""
    products, distance_sq, vector_sq = [], [], []
    for name, vector in vectors.items():
        difference = (x[name].detach().double() - target[name]).flatten()
        flat = vector.flatten()
        products.append(flat @ difference)
        distance_sq.append(difference @ difference)
        vector_sq.append(flat @ flat)
    return torch.stack(products), torch.stack(distance_sq), torch.stack(vector_sq)


def _check_same_end(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Refuse runs whose final parameters differ in any bit."""
    differing = [
        name
        for name in first
        if not torch.allclose(first[name], second[name], 0, 0, equal_nan=True)
    ]
    if differing:
        raise RuntimeError(
            f"The second run did not end where the first did: {len(differing)} of "
            f"{len(first)} tensors differ, including {differing[:3]}. The protocol needs "
            "identical runs: fix all seeds, and choose deterministic kernels."
        )


def _dataset(
    products: Any,
    distance_sq: Any,
    vector_sq: Any,
    names: list[str],
    step: npt.NDArray[np.int64],
    steps_per_epoch: int,
    *,
    layers: bool,
) -> xr.Dataset:
    """Compute all quantities from the results of `_products`, each (step, layer)."""
    dims: tuple[str, ...] = ("step", "layer")
    if not layers:
        products, distance_sq, vector_sq = (
            values.sum(1) for values in (products, distance_sq, vector_sq)
        )
        dims = dims[:1]
    distance, norm = np.sqrt(distance_sq), np.sqrt(vector_sq)
    with np.errstate(divide="ignore", invalid="ignore"):
        quantities = {
            "gamma": products / (norm * distance),
            "rsi": products / distance_sq,
            "eb": norm / np.where(distance > 0, distance, np.nan),
            "lolr": products / vector_sq,
            "distance": distance,
        }
    coordinates: dict[str, Any] = {
        "step": step,
        "epoch": ("step", step // steps_per_epoch),
        "iteration": ("step", step % steps_per_epoch),
    }
    if layers:
        # Zarr's specification has strings of variable length, but not of fixed length.
        coordinates["layer"] = np.array(names, object)
    attributes = {"reference": "final", "source": "exact two-run protocol"}
    variables = {name: (dims, values) for name, values in quantities.items()}
    return xr.Dataset(variables, coordinates, attributes)
