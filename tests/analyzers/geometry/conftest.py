"""Recordings of one small training in several ways, and its exact geometry."""

from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import analyzers
import trajstore
from tests.analyzers.geometry.descent import Train, recorded
from trajstore.reading.run import Run


@pytest.fixture(scope="session", params=[3, 0], ids="basis={}".format)
def sketched(
    request: pytest.FixtureRequest,
    example_run: Path,
    tmp_path_factory: pytest.TempPathFactory,
    train_small: Train,
) -> Run:
    """The small training, recorded with a basis and without."""
    if request.param == 3:
        return trajstore.open_run(example_run)
    path = tmp_path_factory.mktemp("sketched") / "run.zarr"
    return recorded(path, train_small, sketch_bits=1024, probes=256, basis=0)


@pytest.fixture(scope="session")
def exact(exact_run: Path) -> Run:
    return trajstore.open_run(exact_run)


@pytest.fixture(scope="session")
def geometry(sketched: Run) -> xr.Dataset:
    return analyzers.path_geometry(sketched).compute()


@pytest.fixture(scope="session")
def by_layer(sketched: Run) -> xr.Dataset:
    return analyzers.path_geometry(sketched, layers=True).compute()


@pytest.fixture(scope="session")
def truth(train_small: Train) -> xr.Dataset:
    from train.protocols.two_run import two_run

    return two_run(train_small)


@pytest.fixture(scope="session")
def truth_by_layer(train_small: Train) -> xr.Dataset:
    from train.protocols.two_run import two_run

    return two_run(train_small, layers=True)


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory, train_small: Train) -> Run:
    """A run that starts at the same point, learns more slowly and ends elsewhere."""
    from trajstore import Recorder

    path = tmp_path_factory.mktemp("other") / "slow.zarr"

    def observe(model: Any, optimizer: Any, **options: Any) -> Any:
        optimizer.param_groups[0]["lr"] = 0.02
        return Recorder(path, model, optimizer, sketch_bits=256, probes=64, **options)

    train_small(observe)
    return trajstore.open_run(path)
