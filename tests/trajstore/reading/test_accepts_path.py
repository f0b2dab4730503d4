"""Test ``trajstore.reading.accepts_path``, and targets that are paths."""

from pathlib import Path

import numpy as np
import pytest

from tests.trajstore.handmade import write_run
from trajstore import open_run, parameters_at
from trajstore.reading.target import find_target


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_run(tmp_path / "run.zarr", n_steps=4)
    return tmp_path / "run.zarr"


@pytest.mark.parametrize("kind", [str, Path, open_run])
def test_a_run_may_be_given_by_its_path(path: Path, kind: type):
    expected, found = parameters_at(open_run(path)), parameters_at(kind(path))
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(values, found[name])


def test_something_else_is_refused():
    with pytest.raises(TypeError, match=r"the path of its store, got int.*open_run"):
        parameters_at(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [str, Path])
def test_a_target_may_be_the_path_of_another_run(path: Path, kind: type):
    write_run(path.with_name("other.zarr"), n_steps=3)
    found = find_target(open_run(path), kind(path.with_name("other.zarr")))
    assert found.label == "final of other.zarr"


@pytest.mark.parametrize("name", ["absent.zarr", "", "\x00", "a" * 5000])
def test_a_name_that_is_no_path_is_a_snapshot(path: Path, name: str):
    with pytest.raises(KeyError, match="No snapshot") as caught:
        find_target(open_run(path), name)
    assert ("Nor is there a store" in str(caught.value)) == (name == "absent.zarr")
