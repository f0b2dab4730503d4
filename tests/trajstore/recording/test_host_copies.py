"""Copies of results from a device to the host."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.trajstore.tracking.random_walk import spec_of
from trajstore.format.rows import measured_arrays
from trajstore.recording.host_copies import HostCopies, Staging, to_numpy
from trajstore.recording.row_buffer import Entry, RowBuffer

TYPES = [torch.float32, torch.float64, torch.int8, torch.uint8, torch.int64]
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (3, 5), (7, 11, 2), (1000,)]


def some_tensors() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    tensors = [
        (100 * torch.rand(shape, generator=generator)).to(dtype)
        for dtype in TYPES
        for shape in SHAPES
    ]
    return [*tensors, torch.arange(12.0).view(3, 4).t()]


@pytest.mark.parametrize("n_bytes", [16, 48, 4096, 1 << 20])
def test_values_pass_a_staging_of_any_size(n_bytes: int):
    waits = []
    staging = Staging(n_bytes, lambda: waits.append(n_bytes), pin=False)
    tensors = some_tensors()
    for _ in range(2):
        found = staging.fetch(tensors)
        for array, tensor in zip(found, tensors, strict=True):
            expected = tensor.numpy()
            assert array.dtype == expected.dtype
            assert array.shape == expected.shape
            np.testing.assert_array_equal(array, expected)
    total = sum(tensor.nbytes for tensor in tensors)
    assert len(waits) >= 2 * (total // n_bytes)


def test_small_tensors_are_waited_for_together():
    waits = []
    staging = Staging(1 << 20, lambda: waits.append(1), pin=False)
    staging.fetch(some_tensors())
    assert len(waits) == 1
    staging.fetch([])
    assert len(waits) == 1


def test_nothing_is_read_before_it_has_arrived():
    """Copies that happen only in the wait for them, as late as on a slow device."""

    copies: list[Any] = []
    copy = torch.Tensor.copy_

    def copy_later(self: Any, source: Any, non_blocking: bool = False) -> Any:
        assert non_blocking
        copies.append((self, source.clone()))
        return self

    def wait() -> None:
        for target, source in copies:
            copy(target, source)
        copies.clear()

    staging = Staging(64, wait, pin=False)
    tensors = some_tensors()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", copy_later)
        found = staging.fetch(tensors)
    for array, tensor in zip(found, tensors, strict=True):
        np.testing.assert_array_equal(array, tensor.numpy())


def test_scalars_of_all_rows_are_fetched_at_once():
    spec = spec_of({"a": (3,)}, sketch_bits=64)
    windows = [torch.full((1,), 4.0).double(), torch.full((1,), 9.0).double()]
    logged: list[dict[str, Any]] = [
        {"loss": torch.tensor(0.5), "count": torch.tensor(7), "lr": 0.1},
        {"loss": torch.tensor([0.25]), "half": torch.tensor(1.5).bfloat16()},
        {},
        {"count": torch.tensor(2**40 + 1), "loss": 3.0, "yes": torch.tensor(data=True)},
    ]
    entries = [
        Entry((0, i, i // 2), windows[i // 2], scalars)
        for i, scalars in enumerate(logged)
    ]
    measured = {
        name: torch.zeros((6, *shape), dtype=getattr(torch, dtype))
        for name, (dtype, shape) in measured_arrays(spec, 1024).items()
    }
    calls = []

    def fetch(tensors: Any) -> Any:
        calls.append([tuple(t.shape) for t in tensors])
        return to_numpy(tensors)

    _, scalars = RowBuffer(measured=measured, entries=entries).arrays(spec, fetch)

    # One call fetches a tensor for each of two windows, and one for each logged type.
    assert len(calls) == 1
    assert calls[0][len(measured) :] == [(1,), (1,), (2,), (2,), (1,), (1,)]
    found = [{k: v for k, v in row.items() if "norm" not in k} for row in scalars]
    assert found == [
        {"loss": 0.5, "count": 7.0, "lr": 0.1},
        {"loss": 0.25, "half": 1.5},
        {},
        {"count": 2.0**40 + 1, "loss": 3.0, "yes": 1.0},
    ]
    param_norms = [row["param_norm"] for row in scalars]
    assert param_norms == [2.0, 2.0, 3.0, 3.0]


def test_on_the_cpu_nothing_is_copied():
    copies = HostCopies(torch.device("cpu"))
    tensor = torch.ones(3)
    copies.mark()
    with copies.after_mark():
        assert np.shares_memory(copies.fetch([tensor])[0], tensor.numpy())
