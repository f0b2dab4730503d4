"""Deep linear networks have the data and initial weights that the closed form requires."""

from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from train.loop import train
from train.models.deep_linear import aligned_weights, random_weights, stack
from train.observer import unobserved
from train.protocols.record import record
from train.workloads import deep_linear
from train.workloads.catalogue import WORKLOADS, settings_of
from trajstore.reading.run import open_run


def test_inputs_are_white_and_targets_have_the_correlation():
    splits = deep_linear.linear_data(5)
    data: Any = splits.train
    inputs, targets = data[3]
    assert len(data) == deep_linear.STEPS_PER_EPOCH
    n = len(inputs)
    torch.testing.assert_close(
        inputs.T @ inputs / n, torch.eye(16), atol=1e-6, rtol=1e-6
    )
    correlation = deep_linear.correlation(5)
    torch.testing.assert_close(
        targets.T @ inputs / n, correlation, atol=1e-6, rtol=1e-6
    )
    found = torch.linalg.svdvals(correlation)
    expected = torch.tensor(deep_linear.STRENGTHS)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert not torch.equal(correlation, deep_linear.correlation(6))


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_aligned_weights_are_balanced_and_diagonal(depth: int):
    correlation = deep_linear.correlation(0)
    weights = aligned_weights(correlation, depth=depth, width=12, initial=0.05)
    assert len(weights) == depth
    for before, after in pairwise(weights):
        torch.testing.assert_close(after.T @ after, before @ before.T)
    product = torch.linalg.multi_dot(weights[::-1]) if depth > 1 else weights[0]
    left, _, right = torch.linalg.svd(correlation)
    modes = (left.T @ product @ right.T)[:, :4]
    torch.testing.assert_close(modes, 0.05 * torch.eye(4), atol=1e-6, rtol=1e-5)


def test_narrow_layers_are_refused():
    with pytest.raises(ValueError, match="width of 3 cannot hold 4 singular modes"):
        aligned_weights(deep_linear.correlation(0), depth=2, width=3, initial=0.1)


def test_random_weights_change_lengths_by_the_factor():
    torch.manual_seed(0)
    weights = random_weights([400, 400, 400, 400], initial=0.02)
    vector = torch.randn(400)
    image = torch.linalg.multi_dot([*weights[::-1], vector])
    # The deviations are about sqrt(3 / 400) = 9 %.
    assert float(image.norm() / vector.norm()) == pytest.approx(0.02, rel=0.25)


def test_networks_multiply_their_weights():
    weights = [torch.randn(4, 3), torch.randn(5, 4), torch.randn(2, 5)]
    inputs = torch.randn(7, 3)
    expected = inputs @ (weights[2] @ weights[1] @ weights[0]).T
    torch.testing.assert_close(stack(weights)(inputs), expected)
    bent = stack(weights, torch.nn.Tanh)
    hidden = torch.tanh(torch.tanh(inputs @ weights[0].T) @ weights[1].T)
    torch.testing.assert_close(bent(inputs), hidden @ weights[2].T)
    assert len(stack(weights)) == 3
    assert len(bent) == 5


def test_loss_is_half_of_the_sum_over_outputs():
    outputs = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    targets = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    assert deep_linear.half_sum(outputs, targets) == (1 + 4 + 9) / 2 / 2
    assert deep_linear.half_sum(outputs[None], targets[None]) == 3.5


def test_steps_are_gradient_descent_over_all_data():
    """Compare with the gradient W - Sigma_yx, propagated through two layers by hand."""
    training = replace(settings_of("deep-linear-2"), max_steps=3, lr=0.3)
    found = [p.detach() for p in train(training, unobserved).parameters()]
    torch.manual_seed(training.seed)
    first, second = (
        p.detach().double()
        for p in deep_linear.deep_linear(training.seed, depth=2).parameters()
    )
    correlation = deep_linear.correlation(training.seed).double()
    for _ in range(3):
        error = second @ first - correlation
        first, second = (
            first - 0.3 * second.T @ error,
            second - 0.3 * error @ first.T,
        )
    torch.testing.assert_close(found[0].double(), first, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[1].double(), second, atol=1e-6, rtol=1e-5)


def test_stores_know_their_modes(tmp_path: Path):
    training = replace(settings_of("deep-linear-2"), max_steps=2, seed=4)
    record(training, tmp_path / "run.zarr", exact=True)
    kept = open_run(tmp_path / "run.zarr").attrs
    matrix = torch.tensor(kept["input_output_correlation"])
    assert torch.equal(matrix, deep_linear.correlation(4))
    assert kept["loss_convention"] == "half-sum"
    assert kept["training"] == asdict(training)


@pytest.mark.parametrize("start", ["aligned", "random"])
def test_there_are_three_depths(start: str):
    ending = "" if start == "aligned" else "-random"
    for depth in (2, 3, 4):
        name = f"deep-linear-{depth}{ending}"
        assert WORKLOADS[name].settings.workload == name
        model = train(replace(settings_of(name), max_steps=1), unobserved)
        assert len(list(model.parameters())) == depth
        assert start in WORKLOADS[name].summary
