"""The catalogue: every workload trains, and has the published size."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from tests.train.small_workloads import narrow, truncate
from train.data import Splits
from train.protocols.record import record
from train.settings import Training
from train.workloads import catalogue, known
from train.workloads.catalogue import WORKLOADS
from trajstore.format import attrs
from trajstore.reading.run import open_run

SIZES = {
    "cifar-resnet18": 11_173_962,
    "cifar-resnet18-2": 44_662_922,
    "cifar-mlp": 46_190_602,
    "cifar100-resnet9": 6_621_540,
    "cifar100-resnet18": 11_220_132,
    "cifar100-resnet34": 21_328_292,
    "criteo-dlrm": 539_267_457,
    "fastmri-unet": 7_756_097,
    "ogbg-gnn": 3_554_176,
    "wmt-transformer": 133_521_408,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "imagenet-resnet18": 11_689_512,
    "imagenet-resnet18-2": 45_693_032,
    "imagenet-resnet50": 25_557_032,
    "imagenet-resnet50-2": 98_004_072,
    "imagenet-resnet152-half": 15_601_160,
    "imagenet-resnet152": 60_192_808,
    "vaihingen-unet": 7_763_206,
    "vaihingen-segnet": 29_446_470,
}
"""Number of parameters of each published model."""


@pytest.mark.parametrize("name", SIZES)
def test_models_have_their_published_sizes(name: str):
    if name.startswith("pythia"):
        pytest.importorskip("transformers")
    workload = WORKLOADS[name]
    splits = Splits(None, None, 100)  # type: ignore[arg-type]
    with torch.device("meta"):
        model = workload.model(splits, workload.settings)
    assert sum(p.numel() for p in model.parameters()) == SIZES[name]


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_trains_on_its_stand_in(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if name.startswith("pythia"):
        pytest.importorskip("transformers")
    narrow(monkeypatch)
    truncate(monkeypatch, name, 4, 2)
    settings = WORKLOADS[name].settings
    batch_size = min(2, settings.batch_size)
    settings = replace(settings, data="embedded", batch_size=batch_size, max_steps=2)
    if settings.width is not None:
        settings = replace(settings, width=16)
    options: dict[str, Any] = {"basis": 1, "sketch_bits": 64, "probes": 16}
    record(settings, tmp_path / "run.zarr", **options)
    run = open_run(tmp_path / "run.zarr")
    assert (run.n_steps, run.status) == (2, "complete")
    assert np.isfinite(run.steps.loss).all()
    assert run.attrs["training"]["workload"] == name
    assert "embedded" in run.attrs["data"]


def test_settings_offer_the_optimizers_and_controls_of_the_format():
    hints = get_type_hints(Training)
    assert get_args(hints["optimizer"]) == attrs.OPTIMIZERS
    assert get_args(hints["control"]) == attrs.CONTROLS


def test_commands_know_the_workloads_of_the_catalogue():
    """If this fails, run `make known-workloads`."""
    assert known.FILE.read_text() == known.as_text(catalogue.known())
    assert catalogue.known() == known.KNOWN
