"""The tangent kernel in the training loop: lazy and rich training, resuming."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from tests.train.small_workloads import RecordedLog, truncate
from train.loop import train
from train.observer import unobserved
from train.protocols.record import record
from train.workloads.catalogue import WORKLOADS
from trajstore.reading.run import open_run

FACTS = {
    "kernel_change",
    "kernel_distance",
    "kernel_alignment",
    "kernel_eigenvalue",
    "kernel_eigenvalue_2",
    "kernel_eigenvalue_3",
}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Any:
    truncate(monkeypatch, "digits-tanh", 32)
    return replace(
        WORKLOADS["digits-tanh"].settings,
        epochs=6,
        lr=0.05,
        kernel_every=2,
        kernel_examples=4,
    )


def test_the_kernel_is_logged_and_training_stays_the_same(
    settings: Any, tmp_path: Path
):
    log = RecordedLog()
    measured = train(settings, log)
    assert [bool(FACTS & row.keys()) for row in log.scalars] == [True, False] * 3
    plain = train(replace(settings, kernel_every=0), unobserved)
    for p, q in zip(measured.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)
    record(settings, tmp_path / "run.zarr", exact=True)
    steps = open_run(tmp_path / "run.zarr").steps
    change = steps["kernel_change"].values
    assert (change[0], np.isnan(change[1])) == (0, True)
    assert 0 < change[2] < change[4]


def test_a_resumed_run_compares_with_the_first_kernel(settings: Any):
    whole, states = RecordedLog(), []
    train(settings, whole, save=lambda state, _: states.append(copy.deepcopy(state)))
    part = RecordedLog()
    train(settings, part, start=states[1])
    assert part.scalars == whole.scalars[2:]


def test_larger_outputs_make_training_lazy(settings: Any):
    """The change of the kernel falls like one over the scale (Chizat et al., 2019)."""
    changes = []
    for scale in (10.0, 100.0):
        log = RecordedLog()
        train(replace(settings, output_scale=scale), log)
        changes.append(log.scalars[-2]["kernel_change"])
        # Outputs start at 0, where the loss of one-hot targets is a half.
        assert log.scalars[0]["loss"] == pytest.approx(0.5 / scale**2, rel=1e-5)
    assert changes[0] / changes[1] == pytest.approx(10, rel=0.2)


def test_scales_must_be_positive(settings: Any):
    with pytest.raises(ValueError, match="output_scale: expected a positive number"):
        replace(settings, output_scale=0.0)
