"""Recordings that tests of conditions share; tests must not change them."""

from pathlib import Path

import pytest

from tests.analyzers.conditions.known_run import KnownRun, train


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return tmp_path_factory.mktemp("known")


@pytest.fixture(scope="session")
def known(directory: Path) -> KnownRun:
    return train(directory / "run.zarr")


@pytest.fixture(scope="session")
def other(directory: Path) -> KnownRun:
    """Return a run like `known` with another seed."""
    return train(directory / "other.zarr", seed=1)


@pytest.fixture(scope="session")
def sketched(directory: Path) -> KnownRun:
    return train(directory / "sketched.zarr", exact=False, sketch_bits=512)
