"""Tensors that are exchanged, removed or shared while the optimizer is recorded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim

from tests.trajstore.recording.observed import Observed, gradient, loss_of, net
from trajstore.reading.run import open_run
from trajstore.recording.recorder import Recorder


def train(model: Any, optimizer: Any, steps: range, seen: Observed) -> None:
    for step in steps:
        model.zero_grad()
        loss_of(model, step).backward()
        seen.before(model)
        optimizer.step()


@pytest.mark.parametrize("how", ["model", "groups", "data", "split"])
def test_an_exchanged_tensor_is_followed(how: str, tmp_path: Path):
    model, seen = net(), Observed()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    group = optimizer.param_groups[0]
    recorded: Any = model if how != "groups" else dict(model.named_parameters())
    with Recorder(tmp_path / "run", recorded, optimizer, exact=True):
        train(model, optimizer, range(3), seen)
        old = model[0].weight  # type: ignore[index]
        if how == "data":
            old.data = old.data.clone()
        elif how == "split":
            group["params"] = [p for p in group["params"] if p is not old]
            optimizer.add_param_group({"params": [old]})
        else:
            new = nn.Parameter(old.detach().clone())
            model[0].weight = new  # type: ignore[index]
            group["params"] = [new if p is old else p for p in group["params"]]
        train(model, optimizer, range(3, 6), seen)
    seen.agrees(open_run(tmp_path / "run"), model)


def test_a_removed_tensor_has_no_gradient(tmp_path: Path):
    model, seen = net(), Observed()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    with Recorder(tmp_path / "run", model, optimizer) as recorder:
        train(model, optimizer, range(3), seen)
        removed = optimizer.param_groups[0]["params"].pop(0)
        train(model, optimizer, range(3, 6), seen)
        optimizer.param_groups[0]["params"].insert(0, removed)
        train(model, optimizer, range(6, 8), seen)
        recorder.flush()
    norms = np.linalg.norm(np.array(seen.gradients), axis=1)
    found = open_run(tmp_path / "run").steps
    by_layer = found.grad_sq.isel(layer=0).values
    assert ((by_layer == 0) == [False] * 3 + [True] * 3 + [False] * 2).all()
    np.testing.assert_allclose(found.grad_norm[6:], norms[6:], rtol=1e-5)
    assert (found.grad_norm.values[3:6] < norms[3:6]).all()
    assert (found.update_sq.isel(layer=0).values[3:5] == 0).all()


def test_added_tensors_are_told_of_in_their_first_step(tmp_path: Path):
    model = net()
    optimizer = optim.SGD(model[2].parameters(), lr=0.05)  # type: ignore[index]
    with Recorder(tmp_path / "run", model, optimizer):
        train(model, optimizer, range(3), Observed())
        optimizer.add_param_group({"params": model[0].parameters()})  # type: ignore[index]
        with pytest.warns(UserWarning, match="2 tensors were given") as w:
            train(model, optimizer, range(3, 6), Observed())
    assert [warning.filename for warning in w] == [__file__]


def test_a_tensor_under_two_names_is_recorded_once(tmp_path: Path):
    model = net()
    named = dict(model.named_parameters())
    named["again"] = named["0.weight"]
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    with Recorder(tmp_path / "run", named, optimizer):
        loss_of(model, 0).backward()
        norm = np.linalg.norm(gradient(model))
        optimizer.step()
    run = open_run(tmp_path / "run")
    assert "again" not in run.layout.names
    np.testing.assert_allclose(run.steps.grad_norm, [norm], rtol=1e-6)


class Tied(nn.Module):
    """A model whose embedding is its last layer, and whose middle layer occurs twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.embedding = nn.Embedding(7, 5)
        self.middle = nn.Linear(5, 5)
        self.again = self.middle
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Any) -> Any:
        return self.head(self.again(torch.tanh(self.middle(self.embedding(tokens)))))


def with_all_names(model: nn.Module) -> dict[str, Any]:
    return dict(model.named_parameters(remove_duplicate=False))


TIED: dict[str, Any] = {
    "module": lambda model: model,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "all names": with_all_names,
    "three names": lambda model: {"first": model.head.weight} | with_all_names(model),
    "reversed": lambda model: dict(reversed(with_all_names(model).items())),
}


@pytest.mark.parametrize("given", TIED)
def test_tied_tensors_are_counted_once(given: str, tmp_path: Path):
    model, norms = Tied(), []
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    with Recorder(tmp_path / "run", TIED[given](model), optimizer):
        for step in range(3):
            optimizer.zero_grad()
            tokens = torch.arange(7) + step
            logits = model(tokens[:-1] % 7)
            nn.functional.cross_entropy(logits, tokens[1:] % 7).backward()
            norms.append(np.linalg.norm(gradient(model)))
            optimizer.step()
    run = open_run(tmp_path / "run")
    assert run.layout.n_params == sum(p.numel() for p in model.parameters()) == 65
    np.testing.assert_allclose(run.steps.grad_norm, norms, rtol=1e-6)
