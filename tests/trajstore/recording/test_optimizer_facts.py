"""Test that the settings of optimizers are recorded, with the steps of their changes."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn
from torch.optim import Optimizer

from trajstore import Recorder, open_run
from trajstore.format.optimizer_facts import GroupFacts

OPTIONS: dict[str, Any] = {"sketch_bits": 64, "probes": 16, "steps_per_epoch": 4}


def step(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()


def facts_of(path: Path) -> tuple[GroupFacts, ...]:
    return open_run(path).stored.document.optimizer


def test_classes_groups_and_changes_are_recorded(tmp_path: Path):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = [
        {"params": [model[1].weight, model[0].weight], "weight_decay": 0.1},
        {"params": [model[0].bias, model[1].bias], "nesterov": True},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.5)
    with Recorder(tmp_path / "run.zarr", model, optimizer, **OPTIONS):
        for k in range(6):
            optimizer.param_groups[1]["momentum"] = 0.5 if k < 3 else 0.9
            step(model, optimizer)
    first, second = facts_of(tmp_path / "run.zarr")
    assert first.optimizer == second.optimizer == "torch.optim.sgd.SGD"
    # Parameters are in the order of named_parameters().
    assert (first.tensors, second.tensors) == ((2, 0), (1, 3))
    assert len(first.settings) == 1
    assert first.at(5) == {
        "momentum": 0.5,
        "dampening": 0.0,
        "weight_decay": 0.1,
        "nesterov": False,
        "maximize": False,
    }
    assert [s for s, _ in second.settings] == [0, 3]
    assert [second.at(k)["momentum"] for k in (2, 3)] == [0.5, 0.9]
    assert second.at(0)["nesterov"] is True


def test_facts_of_a_resumed_run(tmp_path: Path):
    model = nn.Linear(3, 4)
    path = tmp_path / "run.zarr"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(path, model, optimizer, **OPTIONS):
        for k in range(5):
            if k == 3:
                state = {name: p.clone() for name, p in model.state_dict().items()}
            optimizer.param_groups[0]["weight_decay"] = 0.0 if k < 4 else 0.2
            step(model, optimizer)
    model.load_state_dict(state)
    optimizer.param_groups[0]["weight_decay"] = 0.1
    with Recorder(path, model, optimizer, resume=True, step=3, **OPTIONS):
        step(model, optimizer)
    [group] = facts_of(path)
    assert [(s, known["weight_decay"]) for s, known in group.settings] == [
        (0, 0.0),
        (3, 0.1),
    ]


def test_several_optimizers_have_their_groups_in_order(tmp_path: Path):
    model = nn.Linear(3, 4)
    first = torch.optim.SGD([model.bias], lr=0.1)
    second = torch.optim.AdamW([model.weight], lr=0.1)
    with Recorder(tmp_path / "run.zarr", model, [first, second], **OPTIONS):
        model(torch.ones(1, 3)).square().sum().backward()
        first.step()
        second.step()
    assert [f.optimizer for f in facts_of(tmp_path / "run.zarr")] == [
        "torch.optim.sgd.SGD",
        "torch.optim.adamw.AdamW",
    ]


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with dup")
@pytest.mark.parametrize("is_one_group", [True, False])
def test_a_tensor_that_is_held_twice_belongs_to_no_group(
    is_one_group: bool, tmp_path: Path
):
    model = nn.Linear(3, 2)
    weight, bias = model.weight, model.bias
    optimizers = (
        [torch.optim.SGD([weight, weight, bias], lr=0.1)]
        if is_one_group
        else [torch.optim.SGD(held, lr=0.1) for held in ([weight, bias], [weight])]
    )
    with Recorder(tmp_path / "run", model, optimizers):
        model(torch.ones(1, 3)).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    run = open_run(tmp_path / "run")
    assert [i for facts in run.stored.document.optimizer for i in facts.tensors] == [1]
