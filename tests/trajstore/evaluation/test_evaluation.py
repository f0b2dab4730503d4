"""Losses of a user's own model, at points of a run, agree with losses computed by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from trajstore import Recorder, open_run
from trajstore.evaluation import (
    OtherTrainingError,
    TrainingSetup,
    losses_between,
    replay,
    restored_state,
)

N, BATCH = 24, 8


@pytest.fixture(name="trained", scope="module")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train with momentum; return the run, the model's setup, and copies of its iterates."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(N, 6), torch.randint(3, (N,)))
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    path = tmp_path_factory.mktemp("own") / "run.zarr"
    first = {k: v.clone() for k, v in model.named_parameters()}
    with Recorder(path, model, optimizer, steps_per_epoch=3, samples=BATCH) as recorder:
        for _ in range(4):
            for indices in torch.randperm(N).split(BATCH):
                optimizer.zero_grad()
                inputs, targets = data[indices]
                loss = cross_entropy(model(inputs), targets)
                loss.backward()
                recorder.log(loss=loss)
                recorder.log_samples(indices)
                optimizer.step()
    setup = TrainingSetup(model=model, loss=cross_entropy, data=data, batch_size=BATCH)
    return open_run(path), setup, first


def state(model: nn.Module) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_replayed_losses_equal_forward_passes_and_leave_the_model_alone(trained: Any):
    run, setup, _ = trained
    model, data = setup.model, setup.data
    model[1].eval()  # a frozen layer stays frozen
    before, stream = state(model), torch.get_rng_state()
    found = replay(run, setup)
    assert equal(before, state(model))
    assert (model.training, model[1].training) == (True, False)
    assert torch.equal(stream, torch.get_rng_state())
    model[1].train()
    expected = []
    with restored_state(model), torch.no_grad():
        for indices in run.samples.values:
            inputs, targets = data[torch.from_numpy(indices)]
            expected.append(float(cross_entropy(model(inputs), targets)))
    np.testing.assert_allclose(found["reference_loss"], expected, rtol=1e-5)


def test_losses_between_the_ends_equal_losses_at_the_ends(trained: Any):
    run, setup, first = trained
    before = state(setup.model)
    found = losses_between(run, setup, 0, "final", fractions=[0.0, 1.0])
    assert equal(before, state(setup.model))
    ends = []
    for parameters in (first, dict(setup.model.named_parameters())):
        with restored_state(setup.model), torch.no_grad():
            setup.model.train()
            losses = [
                torch.func.functional_call(setup.model, parameters, (x,))
                for x in setup.data.tensors[0].split(BATCH)
            ]
            targets = setup.data.tensors[1]
            ends.append(float(cross_entropy(torch.cat(losses), targets)))
    np.testing.assert_allclose(found, ends, rtol=1e-5)


def test_another_loss_and_other_data_are_refused(trained: Any):
    run, setup, _ = trained
    with pytest.raises(
        OtherTrainingError, match=r"loss of the first step is .*recorded"
    ):
        replay(run, replace(setup, loss=lambda *a: 2 * cross_entropy(*a)))
    few = TensorDataset(*(tensor[:9] for tensor in setup.data.tensors))
    with pytest.raises(OtherTrainingError, match=r"data have only 9 examples"):
        replay(run, replace(setup, data=few))


def test_runs_without_indices_say_how_to_record_them(example_run: Path, trained: Any):
    _, setup, _ = trained
    with pytest.raises(ValueError, match=r"samples=batch_size.*log_samples"):
        replay(open_run(example_run), setup)
