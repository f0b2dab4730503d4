"""Test the facts about optimizers in root documents."""

import json
from typing import Any

import pytest

from trajstore.format.optimizer_facts import (
    MAX_CHANGES,
    GroupFacts,
    continued,
    is_facts,
    parse_facts,
)

SGD = {"momentum": 0.9, "nesterov": True}


def group(**changes: Any) -> dict[str, Any]:
    settings = [{"step": 0, **SGD}, {"step": 7, "momentum": 0.5}]
    return {"class": "torch.optim.sgd.SGD", "tensors": [1, 0], "settings": settings} | (
        changes
    )


def is_valid(*groups: Any) -> bool:
    return is_facts(list(groups), n_tensors=3, max_step=100)


def test_facts_survive_json():
    text = json.dumps([group()])
    facts = parse_facts(json.loads(text))
    assert is_valid(*json.loads(text))
    assert json.dumps([f.to_json() for f in facts]) == text
    assert [facts[0].at(step) for step in (0, 6, 7, 50)] == [
        *(SGD, SGD),
        *({"momentum": 0.5}, {"momentum": 0.5}),
    ]


def test_a_store_without_facts_has_none():
    assert parse_facts(None) == ()


@pytest.mark.parametrize(
    "bad",
    [
        "SGD",
        group(tensors=[3]),
        group(tensors=[0, 0]),
        group(tensors=[True]),
        group(other=1),
        group(settings=[{"momentum": 0.9}]),
        group(settings=[{"step": 101}]),
        group(settings=[{"step": 5}, {"step": 5}]),
        group(settings=[{"step": 0, "momentum": float("inf")}]),
        group(settings=[{"step": 0, "momentum": True}]),
        group(settings=[{"step": 0, "nesterov": 1}]),
        group(settings=[{"step": 0, "unknown": 1.0}]),
        group(settings=[{"step": i} for i in range(MAX_CHANGES + 1)]),
        {"class": "torch.optim.sgd.SGD", "tensors": []},
    ],
    ids=repr,
)
def test_invalid_facts_are_found(bad: Any):
    assert not is_valid(bad)
    assert is_valid(group())
    assert not is_valid(group(), group())


def test_settings_are_unknown_after_too_many_changes():
    facts = GroupFacts("torch.optim.sgd.SGD", (0,), ())
    for step in range(2 * MAX_CHANGES):
        facts = facts.changed(step, {"momentum": step / 1000})
    assert len(facts.settings) == MAX_CHANGES
    assert facts.at(MAX_CHANGES - 2) == {"momentum": (MAX_CHANGES - 2) / 1000}
    assert facts.at(MAX_CHANGES - 1) == facts.at(2 * MAX_CHANGES) == {}
    assert is_valid(facts.to_json()) or facts.settings[-1][0] > 100


def test_facts_continue_from_the_step_of_a_resumption():
    before = (GroupFacts("SGD", (0,), ((0, {"momentum": 0.9}), (8, {}))),)
    same = (GroupFacts("SGD", (0,), ((5, {"momentum": 0.9}),)),)
    assert continued(before, same, 5)[0].settings == ((0, {"momentum": 0.9}),)
    other = (GroupFacts("Adam", (0,), ((5, {"weight_decay": 0.1}),)),)
    assert continued(before, other, 5) == other
    assert continued((), other, 5) == other
