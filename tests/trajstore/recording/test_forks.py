"""Forked processes work as they would without a recorder."""

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("numba")

from tests.trajstore.recording.warm_process import WarmProcess

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
        print(total(np.ones(100)), flush=True)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.slow
def test_a_forked_worker_may_use_numbas_threads(
    warm_process: WarmProcess, tmp_path: Path
):
    program = PROGRAM.format(path=str(tmp_path / "run.zarr"))
    finished = warm_process.run(program)
    assert (finished.output, finished.code) == ("100.0\n0\n", 0), finished.errors
