"""Runs of a noisy quadratic, recorded with gradients that a test may change."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import xarray as xr

import trajstore
from trajstore.reading.run import Run

Train = Callable[..., Any]


def z_scores(result: xr.Dataset, truth: xr.Dataset, name: str) -> xr.DataArray:
    return (result[name] - truth[name]) / result[f"{name}_stderr"]


def by_hand(
    observe: Train,
    *,
    shape: tuple[int, int] = (60, 40),
    n_steps: int = 48,
    steps_per_epoch: int = 12,
    spoil: Callable[[int, Any], None] = lambda _step, _gradient: None,
    heal: bool = True,
) -> None:
    """Descend on a noisy quadratic; `spoil` changes the gradients that are recorded.

    With `heal`, the optimizer step itself sees zeros in place of values that are not finite.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(shape[1], shape[0])
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))

    class Healing(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
            for p in model.parameters():
                assert p.grad is not None
                if heal:
                    torch.nan_to_num_(p.grad, nan=0.0, posinf=0.0)
            inspect.unwrap(torch.optim.SGD.step)(self)  # without hooks

    optimizer = Healing(model.parameters(), lr=0.1, momentum=0.5)

    with observe(
        model, optimizer, steps_per_epoch=steps_per_epoch, total_steps=n_steps or None
    ):
        for step in range(n_steps):
            for p in model.parameters():
                noise = torch.randn(p.shape, generator=generator)
                p.grad = 0.2 * p.detach() + noise
                spoil(step, p.grad)
            optimizer.step()


def recorded(path: Path, train: Train, **options: Any) -> Run:
    from trajstore import Recorder

    train(partial(Recorder, path, **options))
    return trajstore.open_run(path)
