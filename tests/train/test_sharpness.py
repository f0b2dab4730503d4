"""Sharpness and gradients of the same batch, measured during training."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.functional import cross_entropy

from tests.train.small_workloads import RecordedLog, truncate
from train.controls import RandomLabels
from train.data.digits import digits, standardized_digits
from train.data.english import VOCABULARY
from train.loop import train
from train.models.transformer import LanguageModel
from train.settings import Training
from train.workloads.catalogue import WORKLOADS
from train.workloads.english import CONTEXT
from train.workloads.tasks import SQUARED_ERROR

N = 50


@pytest.fixture(autouse=True)
def _little_data(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("digits-mlp", "digits-tanh"):
        truncate(monkeypatch, name, N)
    truncate(monkeypatch, "english-transformer", 8)


def settings(name: str, **changes: Any) -> Training:
    batch_size = 4 if name == "english-transformer" else 16
    short = {"epochs": 2, "batch_size": batch_size}
    return replace(WORKLOADS[name].settings, **(short | changes))


def same(first: Any, second: Any) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def make(
    monkeypatch: pytest.MonkeyPatch, name: str, *layers: Callable[[], Any]
) -> None:
    """Replace the model of a workload by the given layers on flat images."""
    workload = WORKLOADS[name]

    def model(*_: Any) -> nn.Module:
        return nn.Sequential(nn.Flatten(), *(layer() for layer in layers))

    monkeypatch.setitem(WORKLOADS, name, replace(workload, model=model))


def test_measurements_leave_no_trace(monkeypatch: pytest.MonkeyPatch):
    layers = partial(nn.Linear, 64, 8), partial(nn.BatchNorm1d, 8), nn.Dropout
    make(monkeypatch, "digits-mlp", *layers, partial(nn.Linear, 8, 10))
    looked = settings(
        "digits-mlp", same_batch_every=2, sharpness_every=1, sharpness_examples=40
    )
    notes = RecordedLog()
    measured = train(looked, notes)
    assert same(train(settings("digits-mlp"), RecordedLog()), measured)
    assert {name for name, *_ in notes.measured} == {"same_batch"}
    assert all(np.isfinite(row["sharpness"]) for row in notes.scalars)


def whole_hessian(model: nn.Module, loss_of: Any, inputs: Any, targets: Any) -> Any:
    """Return the Hessian in float64, with all rows computed together."""
    model = model.double()
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def loss(flat: Any) -> Any:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        values = {
            name: part.view(shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        outputs = torch.func.functional_call(model, values, (inputs.double(),))
        return loss_of(outputs, targets)

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    return torch.func.jacrev(torch.func.grad(loss))(flat)


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the network to 760 parameters, so that its Hessian can be formed."""
    layers = partial(nn.Linear, 64, 10), nn.Tanh, partial(nn.Linear, 10, 10)
    make(monkeypatch, "digits-tanh", *layers)


@pytest.mark.parametrize("control", ["none", "random-labels"])
def test_is_the_largest_eigenvalue_at_the_parameters_of_the_step(
    monkeypatch: pytest.MonkeyPatch, control: Any
):
    small(monkeypatch)
    chosen = settings(
        "digits-tanh",
        control=control,
        sharpness_every=2,
        sharpness_examples=30,
        n_eigenvalues=3,
        max_steps=3,
        epochs=3,
        lr=0.5,
    )
    states: list[Any] = []

    class Copies(RecordedLog):
        def log(self, **scalars: Any) -> None:
            super().log(**scalars)
            if "sharpness" in scalars:
                copy = {k: v.clone() for k, v in self.model.state_dict().items()}
                states.append((self.n_steps, copy))

    notes = Copies()
    model = train(chosen, notes)
    data = WORKLOADS["digits-tanh"].data(chosen).train
    if control == "random-labels":
        data = RandomLabels(data, chosen.seed)
    inputs, targets = (
        torch.stack(parts) for parts in zip(*(data[i] for i in range(30)), strict=True)
    )
    assert [step for step, _ in states] == [0, 2]
    for step, state in states:
        model.load_state_dict(state)
        H = whole_hessian(model.double(), SQUARED_ERROR.loss, inputs, targets)
        expected = np.linalg.eigvalsh(H.numpy())[:-4:-1]
        found = [
            notes.scalars[step][name]
            for name in ("sharpness", "sharpness_2", "sharpness_3")
        ]
        np.testing.assert_allclose(found, expected, rtol=2e-4)
    assert "sharpness" not in notes.scalars[1]


def test_the_sharpness_of_adam_is_preconditioned(monkeypatch: pytest.MonkeyPatch):
    small(monkeypatch)
    chosen = settings(
        "digits-tanh", optimizer="adam", lr=0.01, sharpness_every=1, epochs=4
    )

    class Copies(RecordedLog):
        at: Any = None

        def log(self, **scalars: Any) -> None:
            super().log(**scalars)
            if self.n_steps == 3 and "sharpness" in scalars:
                [v] = (
                    torch.cat(
                        [s[name].flatten() for s in self.optimizer.state.values()]
                    )
                    for name in ["exp_avg_sq"]
                )
                copy = {k: p.clone() for k, p in self.model.state_dict().items()}
                self.at = (v.double(), copy)

    notes = Copies()
    model = train(chosen, notes)
    squares, state = notes.at
    model.load_state_dict(state)
    inputs, targets = WORKLOADS["digits-tanh"].data(chosen).train.tensors  # type: ignore[attr-defined]
    H = whole_hessian(model.double(), SQUARED_ERROR.loss, inputs, targets)
    P = (1 - 0.9**3) * ((squares / (1 - 0.999**3)).sqrt() + 1e-8)
    expected = np.linalg.eigvalsh((H / torch.outer(P, P).sqrt()).numpy())[-1]
    row = notes.scalars[3]
    np.testing.assert_allclose(row["preconditioned_sharpness"], expected, rtol=2e-4)
    np.testing.assert_allclose(
        row["sharpness"], np.linalg.eigvalsh(H.numpy())[-1], rtol=2e-4
    )
    assert "preconditioned_sharpness" not in notes.scalars[0]


def test_normalisation_sees_the_batches_of_training(monkeypatch: pytest.MonkeyPatch):
    layers = partial(nn.Linear, 64, 6), partial(nn.BatchNorm1d, 6), nn.Tanh
    make(monkeypatch, "digits-mlp", *layers, partial(nn.Linear, 6, 10))
    chosen = settings("digits-mlp", sharpness_every=10, sharpness_examples=32, lr=0.0)
    notes = RecordedLog()
    first, normal, _, last = list(train(chosen, notes).children())[1:]
    data: Any = WORKLOADS["digits-mlp"].data(chosen).train
    images, labels = (t[:32] for t in data.tensors)
    parameters = [*first.parameters(), *normal.parameters(), *last.parameters()]
    shapes = [p.shape for p in parameters]

    def loss(flat: Any) -> Any:
        """Return the mean loss of two batches of 16, written out."""
        parts = flat.split([shape.numel() for shape in shapes])
        W, b, scale, shift, V, c = (
            part.view(shape) for part, shape in zip(parts, shapes, strict=True)
        )
        total = torch.zeros((), dtype=torch.float64)
        for rows in (slice(0, 16), slice(16, 32)):
            h = images[rows].flatten(1).double() @ W.T + b
            variance = h.var(0, correction=0) + 1e-5
            h = ((h - h.mean(0)) / variance.sqrt() * scale + shift).tanh()
            total = total + cross_entropy(h @ V.T + c, labels[rows]) / 2
        return total

    flat = torch.cat([p.detach().double().flatten() for p in parameters])
    H = torch.func.jacrev(torch.func.grad(loss))(flat)
    expected = np.linalg.eigvalsh(H.numpy())[-1]
    np.testing.assert_allclose(notes.scalars[0]["sharpness"], expected, rtol=2e-4)


def test_attention_has_second_derivatives(monkeypatch: pytest.MonkeyPatch):
    name = "english-transformer"
    small_model = partial(
        LanguageModel, VOCABULARY, CONTEXT, dim=8, n_layers=1, n_heads=2
    )
    workload = replace(WORKLOADS[name], model=lambda *_: small_model())
    monkeypatch.setitem(WORKLOADS, name, workload)
    notes = RecordedLog()
    train(settings(name, sharpness_every=1, max_steps=1), notes)
    assert 0 < notes.scalars[0]["sharpness"] < 1e4


@pytest.mark.parametrize("full_batch", [False, True], ids=["minibatch", "full batch"])
def test_the_same_batch_is_measured_where_the_step_led(full_batch: bool):
    # Batches have 16 examples; a full batch also contains the 2 examples left over.
    name = "digits-mlp"
    chosen = settings(name, same_batch_every=2, full_batch=full_batch, epochs=3)
    seen: list[Any] = []

    class Batches(RecordedLog):
        """A log that also keeps the parameters at which measurements were made."""

        def measure(self, name: str, **scalars: Any) -> None:
            super().measure(name, **scalars)
            seen.append([p.detach().clone() for p in self.model.parameters()])

    notes = Batches()
    model = train(chosen, notes)
    expected_steps = [1, 3] if full_batch else [1, 3, 5, 7, 9]
    assert [step for _, step, _, _ in notes.measured] == expected_steps
    data = WORKLOADS[name].data(chosen).train
    inputs, labels = data.tensors  # type: ignore[attr-defined]
    order = orders(chosen, len(labels))
    for (_, step, scalars, gradient), at in zip(notes.measured, seen, strict=True):
        for p, value in zip(model.parameters(), at, strict=True):
            p.data = value
        model.zero_grad()
        chosen_rows = slice(0, N) if full_batch else order[step - 1]
        loss = cross_entropy(model(inputs[chosen_rows]), labels[chosen_rows])
        loss.backward()
        expected = torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(float(scalars["loss"]), float(loss.detach()))


def orders(chosen: Training, n: int) -> list[Any]:
    """Return the indices of every minibatch in the order of the training run."""
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(chosen.seed)
    workload = WORKLOADS[chosen.workload]
    workload.model(workload.data(chosen), chosen)
    batches = []
    for _ in range(chosen.epochs):
        loader = DataLoader(
            TensorDataset(torch.arange(n)),
            chosen.batch_size,
            shuffle=True,
            drop_last=True,
        )
        batches += [batch for (batch,) in loader]
    return batches


def test_dropout_is_the_same_before_and_after_the_step(monkeypatch: pytest.MonkeyPatch):
    make(monkeypatch, "digits-mlp", nn.Dropout, partial(nn.Linear, 64, 10))
    notes = RecordedLog()
    # The parameters do not move, so the two gradients are equal unless the masks differ.
    train(settings("digits-mlp", lr=0.0, same_batch_every=1), notes)
    assert len(notes.measured) == notes.n_steps == 6
    for gradient, (_, _, _, again) in zip(notes.gradients, notes.measured, strict=True):
        torch.testing.assert_close(gradient, again, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(notes.gradients[0], notes.gradients[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": 0.5}, r"clip=0\.5 changes the first gradient"),
        ({"control": "noise-gradients"}, "control='noise-gradients' changes the first"),
    ],
)
def test_the_same_batch_is_not_compared_with_changed_gradients(
    changes: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        settings("digits-mlp", same_batch_every=1, **changes)
    settings("digits-mlp", **changes)


@pytest.mark.parametrize(
    "name",
    ["same_batch_every", "sharpness_every", "sharpness_examples", "n_eigenvalues"],
)
def test_negative_numbers_are_refused(name: str):
    with pytest.raises(ValueError, match=f"{name}: expected at least"):
        settings("digits-mlp", **{name: -1})


class SharpnessLog(RecordedLog):
    """A log that also keeps the sharpness without rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.sharpness: list[float] = []

    def log(self, **scalars: Any) -> None:
        super().log(**scalars)
        if "sharpness" in scalars:
            self.sharpness.append(scalars["sharpness"])


def test_a_resumed_run_measures_the_same():
    chosen = settings("digits-tanh", sharpness_every=1, epochs=6)
    whole, states = SharpnessLog(), []
    train(chosen, whole, save=lambda state, _: states.append(copied(state)))
    rest = SharpnessLog()
    train(chosen, rest, start=states[2])
    assert len(rest.sharpness) == 3
    assert rest.sharpness == whole.sharpness[3:]


def copied(state: Any) -> Any:
    from copy import deepcopy

    return deepcopy(state)


def test_standardized_digits_equal_scikit_learns():
    raw, labels = (tensor[:500] for tensor in digits()[0].tensors)
    found, same_labels = standardized_digits().tensors
    expected = StandardScaler().fit_transform(raw.flatten(1).double().numpy())
    np.testing.assert_allclose(found.flatten(1), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(labels, same_labels)


def test_squares_are_half_the_distance_to_the_class():
    outputs = torch.tensor([[1.0, 2.0, 0.0], [0.5, 0.0, 1.0]])
    targets = torch.tensor([1, 2])
    # The mean of (1 + 1 + 0) / 2 and 0.25 / 2.
    assert float(SQUARED_ERROR.loss(outputs, targets)) == pytest.approx(0.5625)
    assert float(SQUARED_ERROR.scores(outputs, targets, outputs)["accuracy"]) == 1
