"""Exact stores of tiny networks: gaps between tensors take no space, and older ones go on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

import analyzers
from trajstore import Recorder, open_run
from trajstore.recording.options import RecorderOptions


def record(
    path: Path, n_steps: int = 60, model: nn.Module | None = None, **options: Any
) -> tuple[Any, nn.Module]:
    """Record a network of 73 parameters in 6 tensors; return its state and the network."""
    torch.manual_seed(0)
    inputs = torch.randn(32, 3)
    if model is None:
        layers = (nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4), nn.Linear(4, 1))
        model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(path, model, optimizer, exact=True, **options) as recorder:
        for _ in range(n_steps):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
        return recorder.state_dict(), model


def bytes_of(path: Path, name: str) -> int:
    return sum(f.stat().st_size for f in (path / name).rglob("c/*/*"))


def without_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let recorders write exact stores as earlier versions did."""
    real = RecorderOptions.run_spec

    def older(*arguments: Any, **options: Any) -> Any:
        return replace(real(*arguments, **options), compressed=False)

    monkeypatch.setattr(RecorderOptions, "run_spec", older)


@pytest.mark.parametrize("float64", [False, True])
def test_gaps_between_tensors_take_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, float64: bool
):
    record(tmp_path / "new.zarr", float64=float64)
    without_compression(monkeypatch)
    record(tmp_path / "old.zarr", float64=float64)
    width, n_steps, n_params = 8 if float64 else 4, 60, 73
    for name in ("gradient", "displacement"):
        padded = bytes_of(tmp_path / "old.zarr", name)
        assert padded > n_steps * 6 * 1024 * width
        assert bytes_of(tmp_path / "new.zarr", name) < 2 * n_steps * n_params * width
    old, new = (
        analyzers.path_geometry(tmp_path / f"{name}.zarr").compute()
        for name in ("old", "new")
    )
    for name in ("gamma", "distance", "lolr"):
        np.testing.assert_array_equal(old[name], new[name])


def test_an_older_exact_store_is_continued_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as older:
        without_compression(older)
        state, model = record(tmp_path / "run.zarr")
    assert not open_run(tmp_path / "run.zarr").spec.compressed
    record(tmp_path / "run.zarr", n_steps=3, model=model, resume=state)
    run = open_run(tmp_path / "run.zarr")
    assert run.n_steps == 63
    assert not run.spec.compressed
