"""Recordings of models that Lightning Fabric has set up, in one process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from lightning.fabric import Fabric
from torch import nn, optim

from trajstore.reading.run import open_run
from trajstore.recording.recorder import Recorder


@pytest.mark.parametrize("given", ["module", "mapping", "compiled"])
def test_parameters_keep_their_names(given: str, tmp_path: Path):
    torch.manual_seed(0)
    plain: Any = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    if given == "compiled":
        plain = torch.compile(plain, backend="eager")
    names = [name.removeprefix("_orig_mod.") for name, _ in plain.named_parameters()]
    fabric, norms = Fabric(accelerator="cpu", devices=1), []
    model, optimizer = fabric.setup(plain, optim.SGD(plain.parameters(), lr=0.1))
    recorded: Any = model
    if given == "mapping":
        recorded = dict(zip(names, model.parameters(), strict=True))
    with Recorder(tmp_path / "run", recorded, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            fabric.backward(model(torch.ones(4, 6)).square().mean())
            squares = [float(p.grad.square().sum()) for p in model.parameters()]
            norms.append(sum(squares) ** 0.5)
            optimizer.step()
    run = open_run(tmp_path / "run")
    assert list(run.layout.names) == names
    np.testing.assert_allclose(run.steps.grad_norm, norms, rtol=1e-5)
