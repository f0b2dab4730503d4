"""Estimated cosines of lagged gradients of language models agree with whole gradients."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analyzers

torch = pytest.importorskip("torch")

from train.loop import train
from train.workloads.catalogue import WORKLOADS
from trajstore import Recorder, open_run

NAMES = [name for name in WORKLOADS if name in {"english-transformer", "english-lstm"}]
N_SEEDS, N_STEPS = 16, 16
LAGS = [1, 2, 5, 10]


class DelayedStart:
    """A log that calls a function when a loop logs the loss of a step."""

    def __init__(self, step: int, begin: Callable[[], None]) -> None:
        self._left, self._begin = step, begin

    def log(self, **scalars: Any) -> None:
        if "loss" in scalars:
            if self._left == 0:
                self._begin()
            self._left -= 1


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 100], ids=["beginning", "later"])
@pytest.mark.parametrize("name", NAMES)
def test_errors_are_as_large_as_they_are_said_to_be(
    tmp_path: Path, name: str, first: int
):
    """Record one training run many times simultaneously, with different random signs."""
    gradients: list[Any] = []

    @contextmanager
    def observe(model: Any, optimizer: Any, **_: Any) -> Iterator[Any]:
        def keep(*_: object) -> None:
            parts = [p.grad.flatten() for p in model.parameters()]
            gradients.append(torch.cat(parts).double().numpy())

        def begin() -> None:
            for seed in range(N_SEEDS):
                path = tmp_path / str(seed)
                recorders.enter_context(Recorder(path, model, optimizer, seed=seed))
            optimizer.register_step_pre_hook(keep)

        with ExitStack() as recorders:
            yield DelayedStart(first, begin)

    n_steps = first + N_STEPS
    train(replace(WORKLOADS[name].settings, batch_size=8, max_steps=n_steps), observe)
    units = np.stack([g / np.linalg.norm(g) for g in gradients])
    exact = units @ units.T
    scores = []
    for seed in range(N_SEEDS):
        run = open_run(tmp_path / str(seed))
        found = analyzers.lagged_gradients(run, lags=LAGS, every=1)
        found = found[["cosine", "cosine_stderr"]].compute()
        scores.append(
            [
                (float(pair.cosine) - exact[k, k + lag]) / float(pair.cosine_stderr)
                for lag in LAGS
                for k in range(N_STEPS - lag)
                for pair in [found.sel(step=k, lag=lag)]
            ]
        )
        # Cosines of adjacent gradients are recorded exactly.
        adjacent = analyzers.zigzag(run).cosine.values[1:]
        np.testing.assert_allclose(adjacent, np.diag(exact, 1), atol=1e-5)
    z = np.array(scores)
    assert 0.8 < z.std() < 1.2
    # All pairs share the same signs, so only the seeds are independent.
    assert abs(z.mean()) < 4 / np.sqrt(N_SEEDS)
