"""Two processes train, and the first process records the mean gradient."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.trajstore.integrations import distributed_training
from tests.trajstore.integrations.by_hand import (
    N_BATCHES,
    check_rows,
    loss_of,
    make_data,
    make_net,
    train_by_hand,
)
from trajstore.reading.run import open_run


def train(library: str, tmp_path: Path) -> None:
    """Train on two processes, as `distributed_training` does."""
    script = Path(distributed_training.__file__)
    root = script.parents[3]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launch, str(script), library, str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    "library", ["accelerate", "fabric", "lightning", "transformers"]
)
def test_one_process_records_the_mean_gradient(library: str, tmp_path: Path):
    pytest.importorskip("lightning" if library == "fabric" else library)
    train(library, tmp_path)
    run = open_run(tmp_path / "run")
    first = [values[:1] for values in make_data().tensors]
    loss = loss_of(make_net(), first).item()
    assert float(run.steps.loss[0]) == pytest.approx(loss, rel=1e-5)
    # One example per process makes a batch of two, whose loss no process computes.
    steps = [
        step._replace(loss=loss)
        for step, loss in zip(train_by_hand(), run.steps.loss.values, strict=True)
    ]
    check_rows(tmp_path / "run", steps, steps_per_epoch=N_BATCHES)
    prefix = "net." if library in {"lightning", "transformers"} else ""
    assert run.spec.names[0] == f"{prefix}0.weight"
    assert np.isfinite(run.steps.loss).all()


@pytest.mark.slow
@pytest.mark.parametrize("library", ["accelerate", "fabric", "lightning"])
def test_two_processes_record_their_shards(library: str, tmp_path: Path):
    pytest.importorskip("lightning" if library == "fabric" else library)
    train(f"{library}_fsdp", tmp_path)
    run, steps = open_run(tmp_path / "run"), train_by_hand()
    assert (run.n_steps, run.status) == (len(steps), "complete")
    norms = [np.linalg.norm(step.gradient) for step in steps]
    np.testing.assert_allclose(run.steps.grad_norm, norms, rtol=1e-5)
    moves = np.diff([step.parameters for step in steps], axis=0)
    updates = run.steps.update_norm[:-1]
    np.testing.assert_allclose(updates, np.linalg.norm(moves, axis=1), rtol=1e-4)
    prefix = "net." if library == "lightning" else ""
    assert run.spec.names[0] == f"{prefix}0.weight"
