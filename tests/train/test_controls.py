"""Null models of training: random labels and random steps."""

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from torch.nn.functional import cosine_similarity

from tests.train.small_workloads import RecordedLog, truncate
from train.controls import replace_by_noise, with_label_noise
from train.loop import train
from train.observer import unobserved
from train.protocols.sweep import load_sweep
from train.settings import Training
from train.workloads.catalogue import WORKLOADS


def settings(name: str, **changes: Any) -> Training:
    """Return settings for two epochs of three steps each."""
    short = {"epochs": 2, "batch_size": 16}
    return replace(WORKLOADS[name].settings, **(short | changes))


@pytest.fixture(autouse=True)
def _little_data(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("digits-mlp", "digits-resnet"):
        truncate(monkeypatch, name, 50)


def parameters(model: Any) -> Any:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class ParameterLog(RecordedLog):
    """A log that also keeps the parameters before every step."""

    def __init__(self) -> None:
        super().__init__()
        self.x: list[Any] = []

    def gradient(self) -> Any:
        self.x.append(parameters(self.model))
        return super().gradient()


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_steps_of_a_walk_have_the_length_of_the_learning_rate(optimizer: str):
    """Check that the length depends neither on the optimizer nor on the weight decay."""
    notes = ParameterLog()
    training = settings(
        "digits-mlp",
        control="random-walk",
        optimizer=optimizer,
        weight_decay=0.1,
        lr=0.3,
    )
    end = train(training, notes)
    steps = torch.stack([*notes.x, parameters(end)]).diff(dim=0)
    norms = steps.norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 0.3), rtol=1e-4, atol=0)
    for gradient, step in zip(notes.gradients, steps, strict=True):
        torch.testing.assert_close(step, -0.3 * gradient, rtol=0, atol=1e-6)
    # Random directions in 300,000 dimensions have cosines of about 0.002.
    cosines = cosine_similarity(steps[:, None], steps[None], dim=2)
    assert abs(cosines - torch.eye(6)).max() < 0.01


def test_a_walk_does_not_depend_on_the_data():
    walks = [
        train(settings("digits-mlp", control="random-walk", **change), unobserved)
        for change in ({}, {"clip": 0.01}, {"batch_size": 8, "max_steps": 6})
    ]
    for other in walks[1:]:
        assert torch.equal(parameters(walks[0]), parameters(other))


def test_a_walk_of_many_tensors_has_one_length():
    torch.manual_seed(0)
    shapes = [(300, 200), (7,), (40, 50, 3)]
    tensors = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for tensor in tensors:
        tensor.grad = 100 * torch.ones_like(tensor)
    left_alone = torch.nn.Parameter(torch.ones(2))
    replace_by_noise([*tensors, left_alone], seed=3, step=5, norm=2.0)
    assert left_alone.grad is None
    flat = torch.cat([t.grad.flatten() for t in tensors if t.grad is not None])
    assert float(flat.norm()) == pytest.approx(2.0, rel=1e-5)
    # Each tensor has its share of the squared norm, with a deviation of sqrt(2 / 6000) = 2 %.
    shares = torch.stack([t.grad.square().sum() for t in tensors if t.grad is not None])
    expected = 4 * torch.tensor([60_000, 7, 6_000]) / 66_007
    torch.testing.assert_close(shares[::2], expected[::2], rtol=0.1, atol=0)


def test_seeds_give_other_noise():
    tensor = torch.nn.Parameter(torch.ones(50))
    drawn = []
    for seed in (0, 1):
        tensor.grad = torch.ones(50)
        replace_by_noise([tensor], seed, step=2)
        drawn.append(tensor.grad)
    assert not torch.equal(*drawn)
    labels = [
        next(iter(with_label_noise(batches(1, (50,)), 5, seed, 2)))[1]
        for seed in (0, 1)
    ]
    assert not torch.equal(*labels)


def batches(n: int, shape: tuple[int, ...]) -> list[tuple[Any, Any]]:
    return [(torch.ones(2), torch.zeros(shape, dtype=torch.int64)) for _ in range(n)]


def test_labels_are_uniform_and_new_in_every_step():
    labels_of = [
        torch.cat([t for _, t in with_label_noise(batches(3, (1000,)), 5, 7, step)])
        for step in (0, 1, 0)
    ]
    for labels in labels_of[:2]:
        assert labels.dtype == torch.int64
        counts = torch.bincount(labels, minlength=5)
        assert len(counts) == 5
        # Each label is expected 600 times, with a standard deviation of 22.
        assert (abs(counts - 600) < 5 * 22).all()
    agree = (labels_of[0] == labels_of[1]).float().mean()
    assert abs(float(agree) - 0.2) < 5 * (0.2 * 0.8 / 3000) ** 0.5
    assert torch.equal(labels_of[0], labels_of[2])
    # The batches within a step also have different labels.
    assert not torch.equal(labels_of[0][:1000], labels_of[0][1000:2000])


def test_labels_keep_their_shape():
    [(inputs, targets)] = with_label_noise(batches(1, (4, 6, 6)), 3, 0, 0)
    assert torch.equal(inputs, torch.ones(2))
    assert targets.shape == (4, 6, 6)


@pytest.mark.parametrize("full_batch", [False, True])
def test_label_noise_reaches_the_loss(full_batch: bool):
    """Use a learning rate of 0, at which only labels and batches change the loss."""
    noise, plain = RecordedLog(), RecordedLog()
    still = {"lr": 0.0, "full_batch": full_batch, "batch_size": 50, "epochs": 3}
    train(settings("digits-mlp", control="label-noise", **still), noise)
    train(settings("digits-mlp", **still), plain)
    losses, learnt = ([s["loss"] for s in notes.scalars] for notes in (noise, plain))
    assert max(learnt) - min(learnt) < 1e-5
    assert max(losses) - min(losses) > 1e-3


def test_noise_leaves_the_random_stream_alone():
    """Check that all controls see the same batches."""
    notes = {name: RecordedLog() for name in ("none", "label-noise", "random-walk")}
    for name, log in notes.items():
        train(settings("digits-mlp", lr=0.0, control=name), log)
    losses = {name: [s["loss"] for s in log.scalars] for name, log in notes.items()}
    assert losses["random-walk"] == losses["none"]
    again = RecordedLog()
    train(settings("digits-mlp", lr=0.0, control="label-noise"), again)
    assert [s["loss"] for s in again.scalars] == losses["label-noise"]


def test_label_noise_needs_classes():
    training = replace(
        WORKLOADS["alm"].settings, control="label-noise", epochs=1, max_steps=1
    )
    with pytest.raises(
        ValueError, match=r"targets are of type torch.float32; choose control"
    ):
        train(training, unobserved)


def test_the_sweep_of_controls_has_all_of_them():
    runs = {run.name: run.training for run in load_sweep("controls").runs}
    assert {name: t.control for name, t in runs.items() if name != "training"} == {
        name: name
        for name in ("random-labels", "label-noise", "noise-gradients", "random-walk")
    }
    plain = runs["training"]
    assert (plain.optimizer, plain.weight_decay) == ("sgd", 0)
    assert {replace(t, control="none") for t in runs.values()} == {plain}
