"""A training loop runs without an observer."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from train.observer import NullLog, unobserved


def test_no_observer_leaves_no_trace():
    model = torch.nn.Linear(2, 1)
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    stream = torch.get_rng_state()
    with unobserved(model, optimizer, steps_per_epoch=2, total_steps=4) as log:
        log.log(loss=torch.tensor(1.0), accuracy=0.5)
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
    assert isinstance(log, NullLog)
    assert torch.equal(stream, torch.get_rng_state())


def test_exceptions_pass_through_no_observer():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.raises(ValueError, match="in the loop"),
        unobserved(model, optimizer, steps_per_epoch=2, total_steps=4),
    ):
        raise ValueError("in the loop")
