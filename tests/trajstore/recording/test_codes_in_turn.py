"""Codes of anchors take the memory of older codes only after these are written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

from trajstore import Recorder, open_run
from trajstore.recording import write_queue
from trajstore.tracking.past_anchors import PastAnchors


def record(path: Path, flush_rows: int = 2) -> Any:
    """Record six windows of two steps."""
    torch.manual_seed(0)
    model = nn.Linear(40, 30)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = torch.randn(8, 40)
    with Recorder(path, model, optimizer, steps_per_epoch=2, flush_rows=flush_rows):
        for _ in range(12):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
    return open_run(path).stored.array("references/codes")[:]


@pytest.mark.parametrize("flush_bytes", [1, 1 << 20], ids=["waits", "allocates"])
def test_a_slow_writer_writes_the_codes_of_every_window(
    flush_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(PastAnchors, "take_oldest", lambda _self: None)
        expected = record(tmp_path / "expected.zarr")
    taken = []
    take = PastAnchors.take_oldest

    def noted(self: PastAnchors) -> Any:
        taken.append(take(self))
        return taken[-1]

    monkeypatch.setattr(PastAnchors, "take_oldest", noted)
    monkeypatch.setattr(write_queue, "HEAD_START", 0.05)
    monkeypatch.setattr(write_queue, "FLUSH_BYTES", flush_bytes)
    flush_rows = 2 if flush_bytes == 1 else 100
    codes = record(tmp_path / "run.zarr", flush_rows)
    np.testing.assert_array_equal(codes, expected)
    assert codes.any(1).sum() > 3
    if flush_bytes == 1:
        # Two codes are kept; each of the others takes the memory of an older one.
        assert sum(memory is not None for memory in taken) == len(codes) - 3
