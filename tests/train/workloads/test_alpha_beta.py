"""Workloads of the alpha-beta paper: their settings, widths and optimizers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from tests.train.small_workloads import RecordedLog, truncate
from train.data.digits import digits
from train.loop import train
from train.models.mlp import mlp
from train.observer import unobserved
from train.protocols.record import record
from train.settings import Training
from train.workloads.catalogue import WORKLOADS
from trajstore.reading.run import open_run

PAPER = {
    "fmnist-mlp": ("sgd", 0.09, "constant", 64, 1500),
    "cifar-cnn": ("sgd", 0.01, "cosine", 64, 1500),
    "cifar100-resnet9": ("sgd", 0.01, "one-cycle", 64, 1000),
    "ptb-lstm": ("nsgd", 158, "decaying", 20, 1000),
    "wikitext2-lstm": ("nsgd", 900, "decaying", 20, 1000),
    "halfspace": ("sgd", 0.25, "constant", 1, 100),
}


@pytest.mark.parametrize("name", PAPER)
def test_settings_are_the_papers(name: str):
    t = WORKLOADS[name].settings
    assert (t.optimizer, t.lr, t.schedule, t.batch_size, t.epochs) == PAPER[name]
    assert (t.weight_decay, t.warmup_epochs, t.clip) == (0, 0, None)


def test_the_half_space_takes_four_thousand_steps():
    notes = RecordedLog()
    train(replace(WORKLOADS["halfspace"].settings, max_steps=3), notes)
    assert notes.lengths == {"steps_per_epoch": 40, "total_steps": 3}


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("digits-mlp", [(7, 64), (7, 7), (10, 7)]),
        ("fmnist-mlp", [(7, 784), (7, 7), (10, 7)]),
        ("cifar-cnn", [(32, 3, 3, 3), (7, 32, 3, 3), (10, 7 * 64)]),
        ("digits-cnn", [(32, 1, 3, 3), (7, 32, 3, 3), (10, 7 * 4)]),
    ],
)
def test_width_is_the_width_of_the_second_layer(
    name: str, shapes: list[Any], monkeypatch: pytest.MonkeyPatch
):
    truncate(monkeypatch, name, 4, 2)
    training = replace(
        WORKLOADS[name].settings, data="embedded", width=7, batch_size=4, max_steps=1
    )
    model = train(training, unobserved)
    assert [tuple(p.shape) for p in model.parameters() if p.ndim > 1] == shapes


@pytest.mark.parametrize("name", ["ptb-lstm", "wikitext2-lstm", "english-lstm"])
def test_width_of_an_lstm_is_the_width_of_its_first_layers(name: str):
    workload = WORKLOADS[name]
    training = replace(workload.settings, data="embedded", width=5)
    splits = workload.data(training)
    model: Any = workload.model(splits, training)
    assert [layer.hidden_size for layer in model.layers][:2] == [5, 5]
    dim = model.tokens.embedding_dim
    assert model.layers[2].hidden_size == dim
    assert dim == (64 if name == "english-lstm" else 400)
    assert model.tokens.num_embeddings == splits.n_classes


def test_widths_are_refused_where_there_are_none():
    digits_resnet = WORKLOADS["digits-resnet"].settings
    with pytest.raises(
        ValueError, match="width: digits-resnet has no width to choose, got 8"
    ):
        train(replace(digits_resnet, width=8), unobserved)
    digits_mlp = WORKLOADS["digits-mlp"].settings
    with pytest.raises(ValueError, match="width: digits-mlp needs a whole number"):
        train(replace(digits_mlp, width=None), unobserved)
    with pytest.raises(ValueError, match="width: expected at least 1, got 0"):
        replace(digits_mlp, width=0)


@pytest.mark.parametrize("optimizer", ["nsgd", "spsmax", "ngn"])
def test_weight_decay_is_refused(optimizer: Any):
    with pytest.raises(ValueError, match=rf"expected 0 with {optimizer}.*got 0\.1"):
        replace(WORKLOADS["digits-mlp"].settings, optimizer=optimizer, weight_decay=0.1)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Training:
    """Return settings for two epochs of three steps each on fifty images."""
    truncate(monkeypatch, "digits-mlp", 50)
    return replace(
        WORKLOADS["digits-mlp"].settings, epochs=2, batch_size=16, width=20, lr=2.0
    )


def size_by_hand(optimizer: str, lr: float, loss: float, norm: float) -> float:
    if optimizer == "spsmax":
        return min(loss / (0.5 * norm**2), lr)
    return lr / (1 + lr * norm**2 / (2 * loss))


@pytest.mark.parametrize("optimizer", ["spsmax", "ngn"])
@pytest.mark.parametrize("lr", [0.05, 2.0])
def test_step_sizes_of_the_loop_follow_from_its_losses(
    short: Training, optimizer: Any, lr: float, tmp_path: Path
):
    """Compare with the same training run, written out with torch's own SGD."""
    training = replace(short, optimizer=optimizer, lr=lr)
    record(training, tmp_path / "run.zarr", exact=True)
    torch.manual_seed(0)
    model = mlp([64, 20, 20, 10])
    sgd = torch.optim.SGD(model.parameters())
    data = TensorDataset(*(t[:50] for t in digits()[0].tensors))
    sizes = []
    for _ in range(2):
        for x, y in DataLoader(data, 16, shuffle=True, drop_last=True):
            sgd.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]
            norm = float(gradient.double().norm())
            sizes.append(size_by_hand(optimizer, lr, loss.item(), norm))
            sgd.param_groups[0]["lr"] = sizes[-1]
            sgd.step()
    run = open_run(tmp_path / "run.zarr")
    np.testing.assert_allclose(run.steps["step_size"], sizes, rtol=1e-4)
    np.testing.assert_array_equal(run.steps["lr"], lr)
    update = run.steps["step_size"] * run.steps["grad_norm"]
    np.testing.assert_allclose(run.steps["update_norm"], update, rtol=1e-4)


def test_steps_of_normalised_sgd_have_the_length_of_the_schedule(
    short: Training, tmp_path: Path
):
    training = replace(short, optimizer="nsgd", lr=0.1, schedule="decaying")
    record(training, tmp_path / "run.zarr", exact=True)
    run = open_run(tmp_path / "run.zarr")
    lengths = 0.1 * np.arange(1, 7) ** -0.75
    np.testing.assert_allclose(run.steps["lr"], lengths, rtol=1e-12)
    np.testing.assert_allclose(run.steps["update_norm"], lengths, rtol=1e-4)
    first = run.steps["step_size"][0] * run.steps["grad_norm"][0]
    assert float(first) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["nsgd", "spsmax", "ngn"])
@pytest.mark.parametrize(
    "change", [{"full_batch": True}, {"clip": 0.1}, {"control": "noise-gradients"}]
)
def test_optimizers_train_under_every_option_of_the_loop(
    short: Training, optimizer: Any, change: Any
):
    notes = RecordedLog()
    changes = {"optimizer": optimizer, "lr": 0.1, "epochs": 2, **change}
    model = train(replace(short, **changes), notes)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    size = notes.optimizer.param_groups[0]["step_size"]
    assert 0 < float(size) < (np.inf if optimizer == "nsgd" else 0.1 + 1e-6)


@pytest.mark.parametrize("name", ["halfspace", "digits-cnn", "english-lstm"])
def test_demonstrations_learn(name: str, monkeypatch: pytest.MonkeyPatch):
    if name == "english-lstm":
        truncate(monkeypatch, name, 64)
    notes = RecordedLog()
    # The LSTM is trained on the same two batches in every epoch.
    changes: Any = {"epochs": 20, "width": 32} if name == "english-lstm" else {}
    train(replace(WORKLOADS[name].settings, max_steps=60, **changes), notes)
    losses = [row["loss"] for row in notes.scalars]
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])
