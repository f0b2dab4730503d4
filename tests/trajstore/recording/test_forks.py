"""Forked processes work as they would without a recorder."""

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("numba")

from tests.trajstore.recording.warm_process import WarmProcess
from trajstore.reading.run import open_run

PROGRAM = """
import os
import numba, numpy as np, torch
from trajstore.recording.recorder import Recorder

@numba.njit(parallel=True)
def total(x):
    s = 0.0
    for i in numba.prange(x.size):
        s += x[i]
    return s

torch.set_num_threads(1)
model = torch.nn.Linear(400, 400)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
with Recorder({path!r}, model, optimizer):
    model(torch.ones(2, 400)).square().mean().backward()
    optimizer.step()
    child = os.fork()
    if child == 0:
        print({work}, flush=True)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""

WORKS = {
    "numba in threads": "total(np.ones(100))",
    "torch in threads": "[torch.set_num_threads(2), float(torch.ones(9, 9).mm(torch.ones(9, 9)).sum())][1]",
    "matrices of numpy": "(np.ones((9, 9)) @ np.ones((9, 9))).sum()",
    "a step": "[optimizer.step(), 729.0][1]",
}
"""What a forked process does, and prints."""


@pytest.mark.slow
@pytest.mark.parametrize("work", WORKS)
def test_a_forked_worker_may_compute_in_threads(
    work: str, warm_process: WarmProcess, tmp_path: Path
):
    program = PROGRAM.format(path=str(tmp_path / "run.zarr"), work=WORKS[work])
    finished = warm_process.run(program)
    printed = "100.0" if "numba" in work else "729.0"
    assert finished.output == f"{printed}\n0\n", finished.errors
    assert finished.code == 0
    assert open_run(tmp_path / "run.zarr").n_steps == 1
