"""Recordings do not depend on torch's default dtype and default device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import trajstore
from tests.trajstore.recording.regression import SMALL
from tests.trajstore.recording.resumable import assert_same_bits
from trajstore.recording.recorder import Recorder
from trajstore.tracking.backends.choose import CHOICE


@contextmanager
def float64_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def another_device_by_default() -> Iterator[None]:
    with torch.device("meta"):
        yield


def record(path: Path, dtype: Any, *, adam: bool, **options: Any) -> None:
    """Record a training run whose tensors all have a given dtype and device."""
    generator = torch.Generator("cpu").manual_seed(0)

    def random(*shape: int) -> Any:
        return torch.randn(shape, generator=generator, dtype=dtype, device="cpu")

    weights = {
        name: random(*shape).requires_grad_()
        for name, shape in (("a", (40, 60)), ("b", (60,)), ("c", (60, 3)))
    }
    kind = torch.optim.AdamW if adam else torch.optim.SGD
    optimizer = kind(weights.values(), lr=0.01)

    def backward() -> Any:
        optimizer.zero_grad()
        hidden = torch.tanh(random(8, 40) @ weights["a"] + weights["b"])
        loss = (hidden @ weights["c"]).square().mean()
        loss.backward()
        return loss.detach()

    options = SMALL | {"steps_per_epoch": 5, "total_steps": 15} | options
    with Recorder(path, weights, optimizer, **options) as recorder:
        for step in range(15):
            if step == 7:
                recorder.snapshot("middle")
                backward()
                recorder.measure("other", batch=1.0)
            recorder.log(loss=backward())
            if step == 9:
                recorder.take_gradient()
            optimizer.step()


@pytest.mark.parametrize("default", [float64_by_default, another_device_by_default])
@pytest.mark.parametrize("backend", ["", "eager"])
@pytest.mark.parametrize(
    ("dtype", "adam", "options"),
    [
        (torch.float32, False, {}),
        (torch.float32, True, {}),
        (torch.float32, False, {"exact": True}),
        (torch.float64, True, {}),
        (torch.float64, False, {"exact": True}),
        (torch.bfloat16, False, {"updates": True}),
    ],
    ids=["SGD", "AdamW", "exact", "float64", "exact float64", "bfloat16"],
)
def test_defaults_of_torch_do_not_matter(
    default: Callable[[], Any],
    backend: str,
    dtype: Any,
    adam: bool,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv(CHOICE, backend)
    record(tmp_path / "expected.zarr", dtype, adam=adam, **options)
    with default():
        record(tmp_path / "run.zarr", dtype, adam=adam, **options)
    found, expected = map(
        trajstore.open_run, (tmp_path / "run.zarr", tmp_path / "expected.zarr")
    )
    assert_same_bits(found, expected)
    assert np.isfinite(found.steps.loss).all()
