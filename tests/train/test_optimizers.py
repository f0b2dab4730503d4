"""Optimizers of other libraries train workloads, and leave recordings honest."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

import trajstore
from tests.train.small_workloads import truncate
from train.loop import train
from train.models.cnn import cnn
from train.models.transformer import LanguageModel
from train.observer import unobserved
from train.optimizers import FROM_LIBRARY, make_optimizer
from train.protocols.record import record
from train.workloads.catalogue import WORKLOADS
from trajstore.reading.run import open_run

LIBRARY = tuple(FROM_LIBRARY)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Any:
    truncate(monkeypatch, "digits-cnn", 128)
    return replace(WORKLOADS["digits-cnn"].settings, width=8, epochs=12, lr=0.01)


@pytest.mark.parametrize("name", LIBRARY)
def test_optimizers_learn_and_are_recorded(name: Any, settings: Any, tmp_path: Path):
    pytest.importorskip("pytorch_optimizer")
    training = replace(settings, optimizer=name, batch_size=32)
    plain = train(training, unobserved)
    record(training, tmp_path / "run.zarr", exact=True)
    run = open_run(tmp_path / "run.zarr")
    loss = run.steps["loss"].values
    assert loss[-4:].mean() < 0.8 * loss[:4].mean()
    recorded = trajstore.parameters_at(run, "final")
    for parameter_name, p in plain.named_parameters():
        np.testing.assert_array_equal(recorded[parameter_name], p.detach().numpy())


def test_steps_of_sign_sgd_have_equal_coordinates(settings: Any, tmp_path: Path):
    pytest.importorskip("pytorch_optimizer")
    training = replace(settings, optimizer="sign-sgd", lr=0.25, max_steps=2)
    record(training, tmp_path / "run.zarr", exact=True)
    run = open_run(tmp_path / "run.zarr")
    # Coordinates whose gradient is exactly 0 stay where they are.
    first, last = (trajstore.parameters_at(run, step) for step in (0, "final"))
    moves = np.concatenate([(last[name] - first[name]).ravel() for name in first])
    near = np.abs(moves[:, None] - np.array([-0.5, -0.25, 0, 0.25, 0.5])).min(1)
    assert near.max() < 1e-5
    assert (np.abs(moves) > 0.1).mean() > 0.2


def test_muon_takes_hidden_matrices_only(settings: Any):
    pytest.importorskip("pytorch_optimizer")
    muon = replace(settings, optimizer="muon")
    model: Any = cnn(1, 8, 10, width=8)
    hidden, others = make_optimizer(model, muon).param_groups
    assert [p.ndim for p in hidden["params"]] == [4, 4]
    assert len(others["params"]) == len(list(model.parameters())) - 2
    assert any(p is model[-1].weight for p in others["params"])
    language: Any = LanguageModel(32, 8, dim=8, n_layers=1, n_heads=2)
    hidden, others = make_optimizer(language, muon).param_groups
    names = {id(p): name for name, p in language.named_parameters()}
    assert not any("token" in names[id(p)] for p in hidden["params"])


def test_without_the_library_the_message_says_what_to_install(
    settings: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(__import__("sys").modules, "pytorch_optimizer", None)
    with pytest.raises(ModuleNotFoundError, match=r'"trajstore\[optimizers\]"'):
        train(replace(settings, optimizer="lion"), unobserved)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "nadamw"])
def test_moments_reach_the_optimizer(optimizer: Any, settings: Any):
    model = torch.nn.Linear(2, 2)
    made = make_optimizer(
        model, replace(settings, optimizer=optimizer, beta1=0.5, beta2=0.6)
    )
    assert made.param_groups[0]["betas"] == (0.5, 0.6)
    made = make_optimizer(model, replace(settings, optimizer=optimizer, beta1=0.5))
    assert made.param_groups[0]["betas"] == (0.5, 0.999)


def test_settings_refuse_moments_of_sgd_and_two_kinds_of_warmup(settings: Any):
    with pytest.raises(ValueError, match="beta1: only adam, adamw, nadamw have it"):
        replace(settings, optimizer="sgd", beta1=0.5)
    with pytest.raises(ValueError, match="beta2: expected at least 0 and less than 1"):
        replace(settings, optimizer="adam", beta2=1.0)
    with pytest.raises(ValueError, match="The warmup is a number of epochs or a share"):
        replace(settings, warmup_epochs=1, warmup_fraction=0.1)
