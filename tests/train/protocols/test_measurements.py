"""Every measured direction agrees with the exact two-run protocol on the digits."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import analyzers

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from train.loop import train
from train.protocols.two_run import two_run
from train.workloads.catalogue import settings_of
from trajstore import Recorder, open_run

TRAINING = replace(
    settings_of("digits-resnet"), epochs=4, measure_every=5, full_gradients=True
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("measured") / "run.zarr"
    train(TRAINING, partial(Recorder, path, updates=True))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("direction", "weight_decay"),
    [
        ("gradient", 0.0),
        ("gradient", TRAINING.weight_decay),
        ("gradient", 0.1),
        ("update", 0.0),
        ("fixed_batches", 0.0),
        ("full_batch", 0.0),
    ],
)
def test_errors_are_as_large_as_they_are_said_to_be(
    store: Path, direction: str, weight_decay: float
):
    exact = two_run(
        lambda observe: train(TRAINING, observe),
        direction=direction,
        weight_decay=weight_decay,
    )
    run = open_run(store)
    source = run if direction == "gradient" else run.measured(direction)
    found = analyzers.path_geometry(source, weight_decay=weight_decay).compute()
    np.testing.assert_array_equal(found.step, exact.step)
    # In the last steps, x - x* is only as long as a single step.
    before_end = exact.step.values < run.n_steps - 10
    z = ((found.gamma - exact.gamma) / found.gamma_stderr).values[before_end]
    if direction == "full_batch":
        # One measurement per epoch gives too few for a standard deviation.
        assert len(z) == 4
        assert np.abs(z).max() < 3
    else:
        assert 0.8 < z.std() < 1.2
        assert np.abs(z).max() < 4
