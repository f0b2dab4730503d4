"""Test that the cost of `analyzers.path_geometry` is linear in the number of tensors."""

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import analyzers
from trajstore import Recorder, open_run

CHILD = """
import sys, analyzers, trajstore
run = trajstore.open_run(sys.argv[1])
geometry = analyzers.path_geometry(run, layers=sys.argv[2] == "True").compute()
assert geometry.gamma.notnull().all()
# `ru_maxrss` of a child begins with the memory of its parent; `VmHWM` does not.
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) / 2**20)
"""


def record(path: Path, n_tensors: int, *, steps: int = 6) -> Path:
    """Record steps of a model with many tensors of a few elements each."""
    generator = torch.Generator().manual_seed(0)
    tensors = torch.nn.ParameterList(
        torch.nn.Parameter(torch.randn(3 + i % 50, generator=generator))
        for i in range(n_tensors)
    )
    optimizer = torch.optim.SGD(tensors.parameters(), lr=0.01)
    with Recorder(path, tensors, optimizer, steps_per_epoch=3):
        for _ in range(steps):
            optimizer.zero_grad()
            sum(((t - 1) ** 2).sum() for t in tensors).backward()
            optimizer.step()
    return path


def peak(path: Path, *, layers: bool) -> int:
    """Return the most bytes that NumPy held during an analysis."""
    geometry = analyzers.path_geometry(open_run(path), layers=layers)
    tracemalloc.start()
    try:
        values = geometry.compute(scheduler="synchronous")
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        assert np.isfinite(values.gamma.values).all()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_square_of_the_number_of_tensors(tmp_path: Path):
    """Four times the tensors need 4.2 to 4.8 times the memory; a table of pairs needs 10."""
    few, many = (record(tmp_path / f"{n}.zarr", n) for n in (300, 1200))
    for layers in (False, True):
        assert peak(many, layers=layers) < 6 * peak(few, layers=layers)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [False, True])
def test_ten_thousand_tensors_take_seconds_and_less_than_a_gigabyte(
    tmp_path: Path, layers: bool
):
    path = record(tmp_path / "run.zarr", 10_000)
    start = time.monotonic()
    command = [sys.executable, "-c", CHILD, str(path), str(layers)]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 20
    assert float(child.stdout) < 1
