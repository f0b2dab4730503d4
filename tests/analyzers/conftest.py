"""Small recorded runs with training settings, and functions that run ``traj-analyze``."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import trajstore
from analyzers import cli
from trajstore.reading.run import Run

BASE: dict[str, Any] = {
    "workload": "shapes-resnet",
    "data": "embedded",
    "data_dir": None,
    "epochs": 8,
    "batch_size": 16,
    "optimizer": "momentum",
    "lr": 0.05,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_epochs": 0,
    "seed": 0,
    "control": "none",
    "full_batch": False,
    "measure_every": 0,
}

DIFFERENT: dict[str, dict[str, Any]] = {
    "base": {},
    "sgd": {"optimizer": "sgd", "lr": 0.1},
    "adam": {"optimizer": "adam", "lr": 0.01},
    "batch-4": {"batch_size": 4, "lr": 0.025},
    "batch-64": {"batch_size": 64, "lr": 0.1},
    "seed-1": {"seed": 1},
    "seed-2": {"seed": 2},
    "short": {"epochs": 4},
    "random-labels": {"control": "random-labels"},
    "noise": {"control": "noise-gradients", "lr": 0.01},
    "full": {"full_batch": True},
    "mlp": {"workload": "shapes-mlp", "optimizer": "sgd", "lr": 0.1},
    "cosine": {"schedule": "cosine", "warmup_epochs": 2},
    "alm": {"workload": "alm", "data": "true"},
    "sm": {"workload": "sm", "data": "true"},
}
"""Settings of each run of `paper_runs` that differ from `BASE`."""

STEPS_PER_EPOCH = 6


def record(path: Path, training: dict[str, Any], **options: Any) -> None:
    """Train on a noisy least-squares problem with the given settings, and record the run."""
    import torch

    from trajstore import Recorder

    torch.manual_seed(training["seed"])
    model = torch.nn.Linear(20, 1)
    optimizer: torch.optim.Optimizer
    if training["optimizer"] == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=training["lr"])
    else:
        momentum = 0.9 if training["optimizer"] == "momentum" else 0.0
        optimizer = torch.optim.SGD(
            model.parameters(), lr=training["lr"], momentum=momentum
        )
    total = STEPS_PER_EPOCH * training["epochs"]
    with Recorder(
        path,
        model,
        optimizer,
        steps_per_epoch=STEPS_PER_EPOCH,
        total_steps=total,
        exact=True,
        attrs={"training": training, "data": "drawn at random"},
        **options,
    ):
        for step in range(total):
            if training["schedule"] == "cosine":
                optimizer.param_groups[0]["lr"] = training["lr"] * (1 - step / total)
            inputs = torch.randn(training["batch_size"], 20)
            targets = inputs.sum(1, keepdim=True) + 0.5 * torch.randn(len(inputs), 1)
            optimizer.zero_grad()
            (model(inputs) - targets).square().mean().backward()
            if training["control"] == "noise-gradients":
                for p in model.parameters():
                    p.grad = torch.randn_like(p)
            optimizer.step()


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory of runs that differ in a setting; results are stored next to them."""
    pytest.importorskip("torch")
    directory = tmp_path_factory.mktemp("stores")
    for name, different in DIFFERENT.items():
        path, has_updates = directory / "sweep" / f"{name}.zarr", name == "base"
        record(path, BASE | different, updates=has_updates)
    return directory


@pytest.fixture(scope="session")
def paper_runs(stores: Path) -> dict[str, Run]:
    """Return the runs of `stores` by name."""
    return {
        name: trajstore.open_run(stores / "sweep" / f"{name}.zarr")
        for name in DIFFERENT
    }


@pytest.fixture(scope="session")
def only() -> Callable[..., list[Run]]:
    """Return a function that chooses runs by name."""
    return lambda runs, *names: [runs[name] for name in names]


@pytest.fixture
def geometry_of() -> Callable[..., xr.Dataset]:
    """Return a function that makes a geometry from gamma by epoch and step."""

    def make(gamma: Any, *, stderr: float = 0.0, **others: Any) -> xr.Dataset:
        values = np.asarray(gamma, float)
        n_epochs, n = values.shape
        given = {"gamma": values, "distance": np.ones_like(values)} | others
        variables = {
            name: ("step", np.broadcast_to(v, values.shape).ravel().astype(float))
            for name, v in given.items()
        }
        for name in ("gamma", "distance"):
            full = np.full(values.size, stderr if name == "gamma" else 0.0)
            variables.setdefault(f"{name}_stderr", ("step", full))
        epoch = np.repeat(np.arange(n_epochs), n)
        return xr.Dataset(variables, {"epoch": ("step", epoch)})

    return make


@pytest.fixture
def traj_analyze(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Return a function that runs ``traj-analyze`` and returns the printed text."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["traj-analyze", *map(str, arguments)])
        cli.main()
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    return run


@pytest.fixture
def refused(
    traj_analyze: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Return a function that runs a failing command and returns its error message."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit, match=r"^1$"):
            traj_analyze(*arguments)
        text = " ".join(capsys.readouterr().err.split())
        assert text.startswith("traj-analyze: ")
        assert "Traceback" not in text
        return text

    return run
