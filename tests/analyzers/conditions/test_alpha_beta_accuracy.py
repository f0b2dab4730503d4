"""Products, cosines and theta of one recording against the exact two-run protocol."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import analyzers
from trajstore import open_run

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from torch import nn

from train.loop import train
from train.models.transformer import LanguageModel
from train.protocols.record import attrs
from train.protocols.replay import replay
from train.protocols.two_run import two_run
from train.workloads.catalogue import WORKLOADS
from trajstore.recording.recorder import Recorder


def little_language_model(*_: Any) -> nn.Module:
    return LanguageModel(128, 64, dim=32, n_layers=2, n_heads=2)


CASES = {
    "digits-resnet": {"epochs": 8},
    "english-transformer": {"epochs": 1, "batch_size": 32, "max_steps": 180},
    "english-lstm": {"epochs": 1, "batch_size": 16, "max_steps": 180, "width": 64},
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes"), CASES.items(), ids=CASES)
def test_errors_match_their_standard_errors(
    name: str,
    changes: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    if name == "english-transformer":
        small = replace(WORKLOADS[name], model=little_language_model)
        monkeypatch.setitem(WORKLOADS, name, small)
    training = replace(WORKLOADS[name].settings, seed=4, **changes)
    path = tmp_path / "run.zarr"
    train(training, partial(Recorder, path, sketch_bits=16384))
    run = open_run(path)
    exact = two_run(lambda observe: train(training, observe))
    loss = run.steps["loss"].values
    aimed = analyzers.aiming(run).compute()
    product = exact["rsi"] * exact["distance"] ** 2
    compared = analyzers.alpha_beta(run, reference_losses=loss).compute()
    expected = {
        "product": (compared, product),
        "cosine": (aimed, exact["gamma"]),
        "theta": (aimed, product / loss),
    }
    # In the last steps, x - x* is shorter than the sketch is designed for.
    mid = slice(0, run.n_steps - 12)
    for quantity, (found, truth) in expected.items():
        z = z_scores(found, quantity, truth)[mid]
        assert 0.8 < z.std() < 1.2, quantity
        assert abs(z.mean()) < 0.5, quantity


def z_scores(found: xr.Dataset, name: str, truth: xr.DataArray) -> Any:
    return (found[name].values - truth.values) / found[f"{name}_stderr"].values


@pytest.mark.slow
def test_pairs_of_a_sketched_run_are_near_the_exact_pairs(tmp_path: Path):
    """Compare the pairs of one training run recorded exactly and as sketches."""
    training = replace(
        WORKLOADS["digits-mlp"].settings,
        epochs=1,
        batch_size=8,
        lr=0.2,
        max_steps=90,
        record_samples=True,
    )
    best: list[list[xr.Dataset]] = []
    ways: list[dict[str, Any]] = [{"exact": True}, {"sketch_bits": 65536}]
    for options in ways:
        path = tmp_path / f"{len(best)}.zarr"
        train(
            training,
            partial(
                Recorder,
                path,
                samples=8,
                attrs=attrs(training),
                **options,
            ),
        )
        run = open_run(path)
        compared = analyzers.alpha_beta(
            run, reference_losses=replay(run)["reference_loss"]
        ).compute()
        best.append([analyzers.feasible_set(compared, n_stderr=n) for n in (-3, 0, 3)])
    exact, (stricter, plain, looser) = best[0][1], best[1]
    alpha = np.linspace(0.5, 5, 40)
    boundary = [
        analyzers.smallest_beta(s, alpha).fillna(np.inf).values
        for s in (stricter, exact, looser)
    ]
    assert (boundary[2] <= boundary[1]).all()
    assert (boundary[1] <= boundary[0]).all()
    assert float(plain["best_alpha"]) == pytest.approx(
        float(exact["best_alpha"]), rel=0.3
    )
