"""Losses on a chord agree with losses at points that are interpolated by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from torch.nn.functional import cross_entropy

import analyzers
from tests.train.small_workloads import truncate
from train.controls import RandomLabels
from train.models.mlp import mlp
from train.protocols.chords import losses_between
from train.protocols.record import record
from train.workloads.catalogue import WORKLOADS
from trajstore import Recorder, open_run


@pytest.mark.parametrize("control", ["none", "random-labels"])
def test_losses_equal_a_forward_pass_between_the_iterates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, control: str
):
    truncate(monkeypatch, "digits-mlp", 50)
    training = replace(
        WORKLOADS["digits-mlp"].settings,
        epochs=3,
        batch_size=16,
        control=control,  # type: ignore[arg-type]
    )
    model = record(training, tmp_path / "run.zarr", sketch_bits=1024, probes=64)
    run = open_run(tmp_path / "run.zarr")
    found = losses_between(run, 0, "final", fractions=[0.0, 0.3, 1.0])
    assert found.fraction.values.tolist() == [0.0, 0.3, 1.0]

    torch.manual_seed(0)
    start = mlp([64, 512, 512, 10])
    data = WORKLOADS["digits-mlp"].data(training).train
    if control != "none":
        data = RandomLabels(data, 0)
    inputs, labels = (
        torch.stack(p) for p in zip(*(data[i] for i in range(50)), strict=True)
    )
    expected = []
    for t in (0.0, 0.3, 1.0):
        mixed = mlp([64, 512, 512, 10])
        with torch.no_grad():
            for p, a, b in zip(
                mixed.parameters(), start.parameters(), model.parameters(), strict=True
            ):
                p.copy_((1 - t) * a + t * b)
            expected.append(float(cross_entropy(mixed(inputs), labels)))
    # The anchor at the start is the first iterate itself.
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert analyzers.chord_convexity(found).slack.sizes == {"fraction": 3}


def test_runs_that_do_not_say_how_they_were_trained_are_refused(tmp_path: Path):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "run.zarr", model, optimizer):
        optimizer.step()
    with pytest.raises(KeyError, match="does not say how it was trained"):
        losses_between(open_run(tmp_path / "run.zarr"), "final", "final")
