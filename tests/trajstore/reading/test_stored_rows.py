"""Test that stored rows are read by chunk, and that damage reads as NaN with one warning."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.trajstore.handmade import EXACT, SIZE, random_rows, write_run
from trajstore import SchemaError, open_run
from trajstore.format.arrays import first_sign_number

damage_is_reported = pytest.warns(UserWarning, match=r"is missing; its values read")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a run of ten steps, with a measurement of four rows."""
    write_run(tmp_path / "run.zarr", n_steps=10, n_measured=4)
    return tmp_path / "run.zarr"


def test_an_array_is_found_by_its_name_in_the_group_or_by_its_path(path: Path):
    run = open_run(path)
    measured = run.measured("other")
    assert (run.stored.n_rows, measured.stored.n_rows) == (10, 4)
    assert measured.stored.path("tables") == "measurements/0/tables"
    assert measured.stored.path("final") == "final"
    for stored, n in ((run.stored, 10), (measured.stored, 4)):
        found = stored.rows("tables", slice(1, 3))
        np.testing.assert_array_equal(found, random_rows(0, n)["tables"][1:3])
    assert measured.stored.step_rows.path("tables") == "tables"
    assert measured.stored.epoch_windows == run.stored.epoch_windows


def test_rows_have_step_numbers_and_sign_numbers(path: Path):
    run = open_run(path)
    measured = run.measured("other").stored
    np.testing.assert_array_equal(run.stored.step_numbers, np.arange(10))
    np.testing.assert_array_equal(run.stored.sign_numbers, np.arange(10))
    np.testing.assert_array_equal(measured.step_numbers, np.arange(4))
    expected = first_sign_number(0) + np.arange(4)
    np.testing.assert_array_equal(measured.sign_numbers, expected)


def test_rows_are_read_only_and_cached(path: Path):
    stored = open_run(path).stored
    first, again = (stored.rows("tables", slice(2, 5)) for _ in range(2))
    assert np.shares_memory(first, again)
    with pytest.raises(ValueError, match="read-only"):
        first[:] = 0


def test_a_damaged_chunk_reads_as_nan_and_is_reported_once(path: Path):
    (path / "tables/c/0/0/0").unlink()
    run = open_run(path)
    with damage_is_reported:
        assert np.isnan(run.stored.rows("tables", slice(0, 10))).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run.stored.is_missing("tables", slice(0, 10)).all()
        assert not run.stored.is_missing("scalars", slice(0, 10)).any()
        assert not run.measured("other").stored.is_missing("tables", slice(0, 4)).any()


@pytest.mark.parametrize("name", ["epoch", "iteration", "window"])
def test_lost_epochs_and_windows_of_steps_follow_from_other_arrays(
    path: Path, name: str
):
    (path / f"{name}/c/0").unlink()
    stored = open_run(path).stored
    with damage_is_reported:
        found = stored.rows(name, slice(0, 10))
    np.testing.assert_array_equal(found, random_rows(0, 10)[name])


def test_lost_epochs_and_windows_of_measured_rows_are_unknown(path: Path):
    (path / "measurements/0/epoch/c/0").unlink()
    (path / "measurements/0/window/c/0").unlink()
    measured = open_run(path).measured("other").stored
    with damage_is_reported:
        assert measured.epochs.tolist() == [-1] * 4
        with pytest.raises(SchemaError, match="windows of the rows are unknown"):
            _ = measured.starts


def test_first_steps_of_windows_survive_the_loss_of_either_array(path: Path):
    (path / "references/start/c/0").unlink()
    with damage_is_reported:
        assert open_run(path).stored.starts.tolist() == list(range(10))
    (path / "window/c/0").unlink()
    with (
        damage_is_reported,
        pytest.raises(SchemaError, match="both 'references/start' and 'window'"),
    ):
        _ = open_run(path).stored.starts


def test_vectors_are_read_in_parts(tmp_path: Path):
    write_run(tmp_path / "exact.zarr", n_steps=3, spec=EXACT)
    stored = open_run(tmp_path / "exact.zarr").stored
    part = slice(5, SIZE - 7)
    np.testing.assert_array_equal(stored.vector("final", part), np.full(SIZE - 12, 3))
    assert stored.vector("final", part) is stored.vector("final", part)
    found = stored.large_rows("gradient", slice(1, 3), part)
    expected = random_rows(0, 3, EXACT)["gradient"][1:3, part]
    np.testing.assert_array_equal(found, expected)
