"""Benchmarks for machines that are not at hand are tried out with tiny sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

OVERHEAD = Path(__file__).parent.parent / "benchmarks" / "overhead.py"


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, OVERHEAD, "--device", "cuda", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_benchmark_for_devices_runs_with_tiny_sizes(tmp_path: Path):
    done = run("--tiny", "--out", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["ResNet-18"]["recorded over plain"] > 0
    assert found["GPT"]["parameters"] > 0
    for alone in ("recorder alone", "recorder alone, plain torch"):
        assert found[alone]["share of the floor"] > 0
    assert "share of the floor" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_the_benchmark_says_what_it_needs(tmp_path: Path):
    done = run("--out", str(tmp_path / "found.json"))
    assert done.returncode == 1
    assert done.stderr.startswith("This benchmark needs a CUDA device")
    assert not (tmp_path / "found.json").exists()
