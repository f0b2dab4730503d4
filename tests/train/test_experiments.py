"""Experiments train, are reproducible, and tell their observer everything."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from torch.utils.data import TensorDataset

from train import digits_mlp, digits_resnet, english_transformer
from train.data.digits import digits
from train.data.english import english
from train.observer import unobserved

EXPERIMENTS: dict[str, Any] = {
    "mlp": digits_mlp.DigitsMLP(epochs=2, batch_size=16),
    "resnet": digits_resnet.DigitsResNet(epochs=2, batch_size=16),
    "transformer": english_transformer.EnglishTransformer(
        epochs=2, batch_size=4, context=16
    ),
}
SCALARS = {
    "mlp": {"loss", "accuracy"},
    "resnet": {"loss", "accuracy"},
    "transformer": {"loss"},
}


class Notes:
    """Keeps what a loop tells."""

    def __init__(self) -> None:
        self.scalars: list[dict[str, float]] = []
        self.told: dict[str, int] = {}
        self.optimizer: Any = None
        self.n_steps = 0

    def log(self, **scalars: Any) -> None:
        self.scalars.append(
            {
                name: float(torch.as_tensor(value).detach())
                for name, value in scalars.items()
            }
        )

    def measure(self, name: str, **scalars: Any) -> None:
        pass

    @contextmanager
    def __call__(
        self, model: Any, optimizer: Any, *, steps_per_epoch: int, total_steps: int
    ) -> Iterator["Notes"]:
        del model
        self.told = {"steps_per_epoch": steps_per_epoch, "total_steps": total_steps}
        self.optimizer = optimizer

        def count(*_: object) -> None:
            self.n_steps += 1

        handle = optimizer.register_step_post_hook(count)
        yield self
        handle.remove()


@pytest.fixture(autouse=True)
def _little_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave 50 images and 14 sequences: three whole batches, and some over."""

    def first(dataset: Any, n: int) -> Any:
        return TensorDataset(*(tensor[:n] for tensor in dataset.tensors))

    images, test = digits()
    for module in (digits_mlp, digits_resnet):
        monkeypatch.setattr(module, "digits", lambda: (first(images, 50), test))
    monkeypatch.setattr(
        english_transformer, "english", lambda context: first(english(context), 14)
    )


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_observer_is_told_every_step(name: str):
    notes = Notes()
    epochs: list[int] = []

    def track(numbers: range) -> Iterator[int]:
        for epoch in numbers:
            epochs.append(epoch)
            yield epoch

    EXPERIMENTS[name].train(notes, track)

    assert notes.told == {"steps_per_epoch": 3, "total_steps": 6}
    assert notes.n_steps == len(notes.scalars) == 6
    assert epochs == [0, 1]
    assert all(row.keys() == SCALARS[name] for row in notes.scalars)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_training_learns(name: str):
    notes = Notes()
    model = EXPERIMENTS[name].train(notes)
    assert notes.scalars[-1]["loss"] < notes.scalars[0]["loss"]
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_observation_does_not_change_the_run(name: str):
    torch.manual_seed(99)
    first = EXPERIMENTS[name].train(unobserved)
    torch.manual_seed(1)
    second = EXPERIMENTS[name].train(Notes())
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_seed_fixes_the_run(name: str):
    from dataclasses import replace

    first = EXPERIMENTS[name].train(unobserved)
    other = replace(EXPERIMENTS[name], seed=1).train(unobserved)
    pairs = list(zip(first.parameters(), other.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in pairs)


def test_options_reach_the_optimizer():
    notes = Notes()
    digits_resnet.DigitsResNet(
        epochs=1, batch_size=25, lr=0.3, momentum=0.7, weight_decay=0.01
    ).train(notes)
    group = notes.optimizer.param_groups[0]
    options = (group["lr"], group["momentum"], group["weight_decay"])
    assert options == (0.3, 0.7, 0.01)
    digits_mlp.DigitsMLP(epochs=1, batch_size=25, lr=0.4).train(notes)
    assert notes.optimizer.param_groups[0]["lr"] == 0.4
    english_transformer.EnglishTransformer(
        epochs=1, batch_size=7, context=8, lr=0.002
    ).train(notes)
    assert notes.optimizer.param_groups[0]["lr"] == 0.002
    assert isinstance(notes.optimizer, torch.optim.Adam)
    assert notes.n_steps == 2 * 3
