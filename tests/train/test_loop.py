"""Workloads train reproducibly, and report every step to their observer."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from torch.nn.functional import cosine_similarity, cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from tests.train.small_workloads import RecordedLog, narrow, truncate
from train.controls import RandomLabels
from train.data.digits import digits
from train.data.english import english
from train.evaluation import fixed_batches
from train.loop import train
from train.models.mlp import mlp
from train.models.resnet import digits_resnet
from train.models.transformer import LanguageModel
from train.observer import unobserved
from train.protocols.two_run import two_run
from train.settings import Training
from train.workloads.catalogue import WORKLOADS

NAMES = ("digits-mlp", "digits-resnet", "english-transformer")
SCALARS = {
    "digits-mlp": {"loss", "accuracy"},
    "digits-resnet": {"loss", "accuracy"},
    "english-transformer": {"loss", "perplexity"},
}


def settings(name: str, **changes: Any) -> Training:
    """Return settings for two epochs of three steps each."""
    batch_size = 4 if name == "english-transformer" else 16
    short = {"epochs": 2, "batch_size": batch_size}
    return replace(WORKLOADS[name].settings, **(short | changes))


@pytest.fixture(autouse=True)
def _small_workloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep 50 images and 14 sequences: three whole batches, and a few more examples."""
    narrow(monkeypatch)
    for name in NAMES:
        truncate(monkeypatch, name, 14 if name == "english-transformer" else 50)


def same(first: Any, second: Any) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_every_step_is_logged(name: str):
    notes = RecordedLog()
    epochs: list[int] = []

    def track(numbers: range) -> Iterator[int]:
        for epoch in numbers:
            epochs.append(epoch)
            yield epoch

    train(settings(name), notes, track)

    assert notes.lengths == {"steps_per_epoch": 3, "total_steps": 6}
    assert notes.n_steps == 6
    assert epochs == [0, 1]
    # The scores at the end of an epoch are logged with the next step.
    scores = {f"val_{s}" for s in SCALARS[name]} if name != NAMES[2] else set()
    for step, row in enumerate(notes.scalars):
        assert row.keys() == SCALARS[name] | (scores if step == 3 else set())
    assert notes.pending.keys() == scores


@pytest.mark.parametrize("name", NAMES)
def test_training_learns(name: str):
    notes = RecordedLog()
    model = train(settings(name), notes)
    assert notes.scalars[-1]["loss"] < notes.scalars[0]["loss"]
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_observation_does_not_change_the_run(name: str):
    torch.manual_seed(99)
    one = train(settings(name), unobserved)
    torch.manual_seed(1)
    assert same(one, train(settings(name), RecordedLog()))


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_fixes_the_run(name: str):
    one = train(settings(name), unobserved)
    assert not same(one, train(settings(name, seed=1), unobserved))


def by_hand(name: str) -> Any:
    """Return the model after the same training run in a loop that is written out."""
    torch.manual_seed(0)
    model: Any
    if name == "english-transformer":
        model = LanguageModel(128, 64, dim=16, n_layers=1, n_heads=4)
        optimizer: Any = torch.optim.Adam(model.parameters(), lr=1e-3)
        data = TensorDataset(*(t[:14] for t in english(64).tensors))
    else:
        images, _ = digits()
        data = TensorDataset(*(t[:50] for t in images.tensors))
        if name == "digits-mlp":
            model = mlp([64, 512, 512, 10])
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        else:
            model = digits_resnet()
            optimizer = torch.optim.SGD(
                model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4
            )
    batch_size = 4 if name == "english-transformer" else 16
    for _ in range(2):
        for x, y in DataLoader(data, batch_size, shuffle=True, drop_last=True):
            optimizer.zero_grad()
            # The classes are the last dimension of both kinds of outputs.
            cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
            optimizer.step()
    return model


@pytest.mark.parametrize("name", NAMES)
def test_equals_a_loop_written_out(name: str):
    assert same(by_hand(name), train(settings(name), unobserved))


def test_measurements_leave_no_trace():
    plain = train(settings("digits-resnet"), RecordedLog())
    measuring = settings("digits-resnet", measure_every=2, full_gradients=True)
    notes = RecordedLog()
    measured = train(measuring, notes)
    assert same(plain, measured)
    for a, b in zip(plain.buffers(), measured.buffers(), strict=True):
        assert torch.equal(a, b)
    measurements = [(name, step) for name, step, _, _ in notes.measured]
    fixed = [("fixed_batches", step) for step in (0, 2, 4) for _ in range(3)]
    full = [("full_batch", 0), ("full_batch", 3)]
    assert sorted(measurements) == sorted(fixed + full)


def test_measured_gradients_are_the_gradients_of_their_batches():
    notes = RecordedLog()
    train(settings("digits-mlp", full_gradients=True, measure_every=10), notes)
    torch.manual_seed(0)
    model = mlp([64, 512, 512, 10])
    images, labels = (t[:50] for t in digits()[0].tensors)

    def gradient(part: slice) -> Any:
        model.zero_grad()
        cross_entropy(model(images[part]), labels[part]).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]

    measured = {
        (name, s.get("batch")): g for name, step, s, g in notes.measured if step == 0
    }
    assert len(measured) == 4
    torch.testing.assert_close(measured["full_batch", None], gradient(slice(0, 50)))
    for i, (inputs, targets) in enumerate(
        fixed_batches(training_data("digits-mlp"), 16, seed=0)
    ):
        model.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        expected = torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]
        torch.testing.assert_close(measured["fixed_batches", i], expected)


def training_data(name: str) -> Any:
    return WORKLOADS[name].data(settings(name)).train


def test_fixed_batches_are_drawn_once_and_leave_no_trace():
    sorted_by_class = TensorDataset(torch.arange(1000.0), torch.arange(1000) // 100)
    stream = torch.get_rng_state()
    batches, again, other = (fixed_batches(sorted_by_class, 50, s) for s in (3, 3, 4))
    assert torch.equal(stream, torch.get_rng_state())
    assert [len(x) for x, _ in batches] == [50] * 10
    examples, same_examples, other_examples = (
        torch.cat([x for x, _ in drawn]) for drawn in (batches, again, other)
    )
    assert len(examples.unique()) == 500
    assert torch.equal(examples, same_examples)
    assert not torch.equal(examples, other_examples)
    assert all(len(classes.unique()) > 5 for _, classes in batches)
    assert all(torch.equal(x.long() // 100, y) for x, y in batches)


def test_the_same_batches_are_measured_again():
    notes = RecordedLog()
    train(settings("digits-mlp", lr=0.0, measure_every=2), notes)
    gradients = [g for name, _, _, g in notes.measured if name == "fixed_batches"]
    assert len(gradients) == 9
    for a, b in zip(gradients, gradients[3:], strict=False):
        assert torch.equal(a, b)
    assert not torch.equal(gradients[0], gradients[1])


def test_a_full_batch_is_all_data():
    notes = RecordedLog()
    train(settings("digits-mlp", full_batch=True), notes)
    assert notes.lengths == {"steps_per_epoch": 1, "total_steps": 2}
    other = RecordedLog()
    train(settings("digits-mlp", full_gradients=True), other)
    torch.testing.assert_close(notes.gradients[0], other.measured[0][3])


def test_noise_has_the_norm_of_the_gradient():
    real, noise = RecordedLog(), RecordedLog()
    train(settings("digits-mlp"), real)
    train(settings("digits-mlp", control="noise-gradients"), noise)
    a, b = real.gradients[0], noise.gradients[0]
    torch.testing.assert_close(a.norm(), b.norm())
    # Random directions in 300,000 dimensions have cosines of about 0.002.
    assert abs(cosine_similarity(a, b, dim=0)) < 0.01
    assert abs(cosine_similarity(b, noise.gradients[1], dim=0)) < 0.01


def test_random_labels_are_a_permutation():
    data = TensorDataset(torch.arange(100), torch.arange(100))
    shuffled = RandomLabels(data, seed=3)
    inputs, targets = zip(*(shuffled[i] for i in range(len(shuffled))), strict=True)
    assert list(map(int, inputs)) == list(range(100))
    assert sorted(map(int, targets)) == list(range(100))
    assert list(map(int, targets)) != list(range(100))
    again = RandomLabels(data, seed=3)
    assert int(again[5][1]) == int(targets[5])
    assert not same(
        train(settings("digits-mlp"), unobserved),
        train(settings("digits-mlp", control="random-labels"), unobserved),
    )


def test_a_run_ends_after_the_given_number_of_steps():
    notes = RecordedLog()
    train(settings("digits-mlp", max_steps=4), notes)
    assert notes.n_steps == 4
    assert notes.lengths["total_steps"] == 4


def test_long_gradients_are_clipped():
    plain, clipped = RecordedLog(), RecordedLog()
    train(settings("digits-mlp", max_steps=1), plain)
    norm = float(plain.gradients[0].norm())
    train(settings("digits-mlp", max_steps=1, clip=norm / 2), clipped)
    torch.testing.assert_close(clipped.gradients[0], plain.gradients[0] / 2)
    train(settings("digits-mlp", max_steps=1, clip=2 * norm), clipped)
    torch.testing.assert_close(clipped.gradients[1], plain.gradients[0])


def test_learning_rates_follow_the_schedule():
    def rates(**changes: Any) -> list[float]:
        notes = RecordedLog()
        train(settings("digits-mlp", lr=0.5, epochs=4, **changes), notes)
        return notes.rates

    assert rates() == [0.5] * 12
    tenth = rates(schedule="last-epoch-tenth")
    assert tenth == pytest.approx([0.5] * 9 + [0.05] * 3)
    warm = rates(schedule="cosine", warmup_epochs=1)
    rise = [0.5 / 3, 1.0 / 3, 0.5]
    fall = [0.25 * (1 + math.cos(math.pi * k / 9)) for k in range(9)]
    assert warm == pytest.approx(rise + fall)


def test_the_weight_decay_of_the_last_epoch_follows_the_paper():
    def decays(**changes: Any) -> list[float]:
        notes = RecordedLog()
        changes = {"schedule": "last-epoch-tenth", "weight_decay": 0.2} | changes
        train(settings("digits-mlp", **changes), notes)
        return notes.decays

    assert decays() == pytest.approx([0.2] * 3 + [0.02] * 3)
    assert decays(as_published=True) == [0.2] * 6
    assert decays(schedule="constant") == [0.2] * 6


def test_options_reach_the_optimizer():
    notes = RecordedLog()
    train(settings("digits-resnet", lr=0.3, weight_decay=0.01), notes)
    group = notes.optimizer.param_groups[0]
    options = (group["lr"], group["momentum"], group["weight_decay"])
    assert options == (0.3, 0.9, 0.01)
    train(settings("digits-mlp", optimizer="sgd"), notes)
    assert notes.optimizer.param_groups[0]["momentum"] == 0
    train(settings("digits-mlp", optimizer="adam", lr=0.002), notes)
    assert isinstance(notes.optimizer, torch.optim.Adam)
    assert notes.optimizer.param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"lr": -1.0}, r"lr: expected at least 0, got -1\.0"),
        ({"lr": math.nan}, "lr: expected at least 0, got nan"),
        ({"max_steps": 0}, "max_steps: expected at least 1"),
        ({"schedule": "cosin"}, "schedule: expected one of .*'cosine'.*, got 'cosin'"),
        ({"optimizer": "adan"}, "optimizer: expected one of .*, got 'adan'"),
        ({"control": "random-label"}, "control: expected one of .*'random-labels'"),
        ({"epochs": "three"}, "epochs: expected a whole number, got 'three'"),
        ({"epochs": 2.5}, r"epochs: expected a whole number, got 2\.5"),
        ({"epochs": True}, "epochs: expected a whole number, got True"),
        ({"lr": "fast"}, "lr: expected a number, got 'fast'"),
        ({"full_batch": 1}, "full_batch: expected true or false, got 1"),
        ({"data_dir": 3}, "data_dir: expected text or nothing, got 3"),
    ],
)
def test_numbers_out_of_range_are_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        settings("digits-mlp", **change)


def test_missing_kinds_of_data_are_refused():
    with pytest.raises(ValueError, match="digits-mlp has no true data, only embedded"):
        train(settings("digits-mlp", data="true"), unobserved)


def test_batches_larger_than_the_data_are_refused():
    with pytest.raises(ValueError, match="fewer examples than batch_size = 64"):
        train(settings("digits-mlp", batch_size=64), unobserved)


def test_a_whole_number_is_a_number():
    assert settings("digits-mlp", lr=1).lr == 1


@pytest.mark.parametrize("name", ["alm", "sm"])
def test_the_seed_chooses_the_counter_example(name: str):
    short = replace(WORKLOADS[name].settings, max_steps=2)
    one, again = train(short, unobserved), train(short, unobserved)
    assert same(one, again)
    assert not same(one, train(replace(short, seed=1), unobserved))


@pytest.mark.parametrize("name", ["alm", "sm"])
def test_gradients_of_counter_examples_point_away_at_times(name: str):
    """Check the paper's statement on both examples with the exact two-run protocol."""
    training = replace(WORKLOADS[name].settings, max_steps=600)
    gamma = two_run(lambda observe: train(training, observe)).gamma[:540]
    assert float((gamma < 0).mean()) > 0.05
    assert float((gamma > 0).mean()) > 0.05


def test_a_missing_accelerator_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
):
    """Imitate a CUDA build of torch on a machine without a GPU."""

    def accelerator(*, check_available: bool = False) -> Any:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", accelerator)
    model = train(settings("digits-mlp", max_steps=1), unobserved)
    assert next(model.parameters()).device.type == "cpu"
