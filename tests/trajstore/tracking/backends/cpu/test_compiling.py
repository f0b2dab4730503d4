"""Test how kernels are compiled, cached and announced."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from numba import float64, int64
from numba.core import caching

from trajstore.tracking.backends.cpu import compiling


def double(x: float) -> float:
    return 2 * x


SIGNATURE = float64(float64)


def test_a_function_is_compiled_without_a_cache_directory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    compiling._warn_of_missing_cache.cache_clear()
    assert compiling.jit(double)(3.0) == 6.0
    assert "NUMBA_CACHE_DIR" in caplog.text


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("cache_folder")
def test_only_functions_that_are_not_in_the_cache_are_announced(
    caplog: pytest.LogCaptureFixture,
):
    compiling.ANNOUNCER.finish()
    caplog.set_level(logging.INFO, "trajstore")
    for messages in (["Compiling kernels,", "Kernels are"], []):
        caplog.clear()
        assert compiling.jit(double, SIGNATURE)(3.0) == 6.0
        compiling.ANNOUNCER.finish()
        found = [" ".join(message.split()[:2]) for message in caplog.messages]
        assert found == messages


@pytest.mark.usefixtures("cache_folder")
def test_waiting_kernels_are_compiled_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiling, "_WAITING", [])
    kernels: list[Any] = [
        compiling.compiled(int64, int64)(lambda _part, _arguments: None)
        for _ in range(2)
    ]
    assert not any(kernel.overloads for kernel in kernels)
    compiling.compile_waiting()
    assert [len(kernel.overloads) for kernel in kernels] == [1, 1]
    # They never compile for other types.
    with pytest.raises(TypeError, match="No matching definition"):
        kernels[0](1.5, None)


@pytest.mark.usefixtures("cache_folder")
def test_a_change_of_another_kernel_file_makes_the_cache_invalid(
    monkeypatch: pytest.MonkeyPatch,
):
    hits = []
    for source in ("one", "one", "two"):
        monkeypatch.setattr(compiling, "_sources", lambda source=source: source)
        dispatcher: Any = compiling.jit(double, SIGNATURE)
        hits.append(len(dispatcher.stats.cache_hits))
    assert hits == [0, 1, 0]


def test_kernels_run_as_python_functions_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("numba.core.config.DISABLE_JIT", 1)
    assert compiling.jit(double, SIGNATURE) is double


def test_garbage_is_collected_again_afterwards():
    import gc

    with compiling._no_collections():
        assert not gc.isenabled()
    assert gc.isenabled()


RECORD = """
import sys
import torch
from trajstore import Recorder, open_run
model = torch.nn.Linear(3, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with Recorder(sys.argv[1], model, optimizer, steps_per_epoch=2):
    for _ in range(3):
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
assert open_run(sys.argv[1]).steps.sizes["step"] == 3
"""


def test_a_recording_without_numbas_compiler_runs_on_plain_torch(tmp_path: Path):
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    subprocess.run(
        [sys.executable, "-c", RECORD, str(tmp_path / "run")],
        env=environment,
        check=True,
    )


def test_a_warm_cache_gives_the_same_results(cache_folder: Path):
    numbers = np.arange(3.0)
    first, second = (compiling.jit(double, SIGNATURE) for _ in range(2))
    assert [first(x) for x in numbers] == [second(x) for x in numbers]
    assert any(cache_folder.rglob("*.nbc"))
