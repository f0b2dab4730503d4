"""Benchmarks can be imported, and the benchmark for CUDA devices runs with tiny sizes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analyzers
import trajstore

torch = pytest.importorskip("torch")

from trajstore.tracking.tracker import Tracker

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


NAMES = sorted(path.stem for path in BENCHMARKS.glob("*.py"))


@pytest.fixture
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the benchmarks on the import path, and remove their modules after the test."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("_importable")
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_can_be_imported(name: str):
    module = import_module(name)
    # Benchmarks time these functions by name.
    for owner, attribute in getattr(module, "PARTS", {}).values():
        assert hasattr(owner, attribute)


@pytest.mark.usefixtures("_importable")
def test_the_time_of_hooks_is_that_of_the_recorder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before_step = Tracker.before_step

    def slow(*args: Any) -> None:
        time.sleep(0.01)
        before_step(*args)

    monkeypatch.setattr(Tracker, "before_step", slow)
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    timed_recorder = import_module("stopwatch").timed_recorder
    with timed_recorder(tmp_path / "run.zarr", model, optimizer) as timed:
        for _ in range(3):
            model(torch.ones(4)).sum().backward()
            optimizer.step()
    assert len(timed.before.seconds) == len(timed.after.seconds) == 3
    assert min(timed.before.seconds) > 0.01 > min(timed.after.seconds)


@pytest.mark.usefixtures("_importable")
def test_synthetic_runs_can_be_analysed(tmp_path: Path):
    write_run = import_module("synthetic").write_run
    path = tmp_path / "run.zarr"
    n_windows = write_run(path, n_params=60_000, n_steps=40, steps_per_epoch=20)
    run = trajstore.open_run(path)
    assert (run.n_steps, len(run.windows["start"])) == (40, n_windows)
    assert run.spec.displacement_sum
    assert np.isfinite(analyzers.path_geometry(run)["distance"].values[:-1]).all()


def run_cuda_benchmark(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, BENCHMARKS / "overhead.py", "--device", "cuda", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_cuda_benchmark_runs_with_tiny_sizes(tmp_path: Path):
    done = run_cuda_benchmark("--tiny", "--out", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["ResNet-18"]["recorded over plain"] > 0
    assert found["GPT"]["parameters"] > 0
    for alone in ("recorder alone", "recorder alone, plain torch"):
        assert found[alone]["share of the floor"] > 0
    assert "share of the floor" in done.stdout


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_with_tiny_sizes(tmp_path: Path):
    environment = os.environ | {"TINY": "1", "PYTHON": sys.executable}
    done = subprocess.run(
        [BENCHMARKS / "gpu.sh", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = {"versions.txt", "tests.txt", "overhead.txt", "overhead.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    found = json.loads((tmp_path / "overhead.json").read_text())
    assert found["ResNet-18, offload"]["recorded over plain"] > 0
    assert "test_cuda.py" in (tmp_path / "tests.txt").read_text()


@pytest.mark.slow
def test_the_script_for_a_gpu_tells_which_part_failed(tmp_path: Path):
    environment = os.environ | {"TINY": "1", "PYTHON": "false"}
    done = subprocess.run(
        [BENCHMARKS / "gpu.sh", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 1
    assert "overhead failed with status 1" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_cuda_benchmark_without_a_device_says_what_it_needs(tmp_path: Path):
    done = run_cuda_benchmark("--out", str(tmp_path / "found.json"))
    assert done.returncode == 1
    assert done.stderr.startswith("This benchmark needs a CUDA device")
    assert not (tmp_path / "found.json").exists()


def test_a_workload_is_compared_with_its_plan(tmp_path: Path):
    out = tmp_path / "found.json"
    sizes = ("--workload", "digits-mlp", "--steps", "3", "--batch-size", "16")
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "large_workloads.py", *sizes, "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["steps"] == 3
    assert found["recorded over plain"] > 0
    assert found["peak GB, recorded"] > found["peak GB, plain"] > 0
    assert found["store, MB"] == pytest.approx(found["planned store, MB"], rel=0.3)


@pytest.mark.usefixtures("_importable")
def test_a_store_without_checks_holds_the_same_values(tmp_path: Path):
    checks = import_module("checks")
    recorder, take = checks.training(tmp_path / "on.zarr", 8)
    with checks.no_checks():
        assert take(5) > 0
    recorder.close()
    with pytest.warns(UserWarning, match="is not the chunk that was committed there"):
        trajstore.open_run(tmp_path / "on.zarr").steps.load()
    checks.strip(tmp_path / "on.zarr", tmp_path / "off.zarr")
    run = trajstore.open_run(tmp_path / "off.zarr")
    assert run.stored.document.version == 1
    assert run.steps.grad_norm.shape == (5,)
    assert np.isfinite(run.steps.grad_norm).all()


@pytest.mark.usefixtures("_importable")
def test_the_first_recording_is_compared_with_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first_recording = import_module("first_recording")
    caches = []

    def seconds(*_: Any, env: dict[str, str], **__: Any) -> str:
        caches.append(env["NUMBA_CACHE_DIR"])
        is_empty = not any(Path(caches[-1]).iterdir())
        (Path(caches[-1]) / "kernel.nbi").touch()
        return "3.5\n" if is_empty else "0.5\n"

    monkeypatch.setattr(first_recording.subprocess, "check_output", seconds)
    out = tmp_path / "found.json"
    first_recording.main(cases=("4,650 parameters",), repetitions=2, out=out)
    [found] = json.loads(out.read_text())
    assert found["delay"] == 3.0
    # Both recordings of a pair share a cache, and every pair begins with an empty one.
    assert caches[0] == caches[1] != caches[2] == caches[3]


@pytest.mark.usefixtures("_importable")
def test_cases_of_first_recordings_have_their_sizes():
    first_recording = import_module("first_recording")
    for name, case in first_recording.CASES.items():
        pairs = zip(case.widths, case.widths[1:], strict=False)
        n_params = sum(n_out * (n_in + 1) for n_in, n_out in pairs)
        number, unit = name.split(" ")[:2]
        scale = 1e6 if unit == "M" else 1
        expected = float(number.replace(",", "")) * scale
        assert n_params == pytest.approx(expected, rel=0.01)
    assert first_recording.record(first_recording.CASES["4,650 parameters"], 2) > 0


@pytest.mark.usefixtures("_importable")
def test_gains_are_ratios_of_errors(monkeypatch: pytest.MonkeyPatch):
    gains, loops = import_module("gains"), import_module("calibration_loops")

    def tiny(seed: int) -> Any:
        return loops.perceptron(seed, widths=(6, 40, 3))

    monkeypatch.setitem(gains.TRAININGS, "mlp579", gains.Trained(tiny, "SGD", 5, 4))
    found = gains.measure("mlp579", 2)
    assert found["bytes"] > 0
    assert found["distance, step"] >= 0
    # Sizes depend on compressed times.
    again = gains.measure("mlp579", 2)
    assert again | {"bytes": 0} == found | {"bytes": 0}
