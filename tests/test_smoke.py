"""Packages import only what they need, and tests are collected without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_trajstore_imports_neither_torch_nor_dask():
    code = "import sys, trajstore; print(sorted({'torch', 'dask'} & set(sys.modules)))"
    assert run(code).stdout.strip() == "[]"


def test_importing_analyzers_imports_no_large_library():
    large = {"dask", "matplotlib", "numpy", "scipy", "torch", "xarray", "zarr"}
    code = f"import sys, analyzers; print(sorted({large} & set(sys.modules)))"
    assert run(code).stdout.strip() == "[]"


def test_importing_the_recorder_does_not_change_the_threads_of_torch():
    pytest.importorskip("torch")
    code = (
        "import torch; n = torch.get_num_threads(); import trajstore.recording.recorder; "
        "print(n, torch.get_num_threads())"
    )
    assert run(code, OMP_NUM_THREADS="1").stdout.split() == ["1", "1"]


def test_tests_are_collected_without_torch():
    # `make no-torch` needs this. Plain assertions halve the time of the collection.
    collected = run(
        "import sys; sys.modules['torch'] = None; import pytest; "
        "sys.exit(pytest.main(['--collect-only', '-qq', '--assert=plain']))"
    )
    assert collected.returncode == 0, collected.stdout[-2000:]
