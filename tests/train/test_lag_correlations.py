"""Cosines of gradients at any lag, of language models, against whole gradients."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analyzers

torch = pytest.importorskip("torch")

from train.loop import train
from train.observer import Deaf
from train.workloads import WORKLOADS
from trajstore import Recorder, open_run

NAMES = [name for name in WORKLOADS if name in {"english-transformer", "english-lstm"}]
N_SEEDS, N_STEPS = 12, 24
LAGS = [1, 2, 5, 10]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_errors_are_as_large_as_they_are_said_to_be(tmp_path: Path, name: str):
    """Over recordings of one training with other random signs, all at once."""
    gradients: list[Any] = []

    @contextmanager
    def observe(model: Any, optimizer: Any, **_: Any) -> Iterator[Deaf]:
        def keep(*_: object) -> None:
            parts = [p.grad.flatten() for p in model.parameters()]
            gradients.append(torch.cat(parts).double().numpy())

        with ExitStack() as recorders:
            for seed in range(N_SEEDS):
                path = tmp_path / str(seed)
                recorders.enter_context(Recorder(path, model, optimizer, seed=seed))
            handle = optimizer.register_step_pre_hook(keep)
            yield Deaf()
            handle.remove()

    settings = replace(WORKLOADS[name].settings, batch_size=8, max_steps=N_STEPS)
    train(settings, observe)
    units = np.stack([g / np.linalg.norm(g) for g in gradients])
    exact = units @ units.T
    scores = []
    for seed in range(N_SEEDS):
        run = open_run(tmp_path / str(seed))
        found = analyzers.lagged_gradients(run, lags=LAGS, every=1).compute()
        scores.append(
            [
                (float(pair.cosine) - exact[k, k + lag]) / float(pair.cosine_stderr)
                for lag in LAGS
                for k in range(N_STEPS - lag)
                for pair in [found.sel(step=k, lag=lag)]
            ]
        )
        # What is recorded of adjacent gradients is exact.
        adjacent = analyzers.zigzag(run).cosine.values[1:]
        np.testing.assert_allclose(adjacent, np.diag(exact, 1), atol=1e-5)
    z = np.array(scores)
    assert 0.8 < z.std() < 1.2
    # The same signs serve all pairs: only the seeds are independent.
    assert abs(z.mean()) < 4 / np.sqrt(N_SEEDS)
