"""Test that `verify` finds damage of results, and does not follow what they claim."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from trajstore.reading.results import write_results
from trajstore.reading.run import Run, open_run
from trajstore.reading.verify_results import result_problems


@pytest.fixture
def run(example_run: Path, tmp_path: Path) -> Run:
    """A run with a result of one array."""
    run = open_run(shutil.copytree(example_run, tmp_path / "run.zarr"))
    write_results(run, "found", xr.Dataset({"values": ("step", np.arange(60.0))}))
    return run


def change(run: Run, key: str, edit: Callable[[dict[str, Any]], None]) -> None:
    path = Path(run.location).with_suffix(".analysis.zarr") / key / "zarr.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def test_a_result_as_it_was_written_has_no_problem(run: Run):
    assert list(result_problems(run)) == []


def test_a_missing_chunk_of_a_complete_result_is_a_problem(run: Run):
    shutil.rmtree(Path(run.location).with_suffix(".analysis.zarr") / "found/values/c")
    assert [text for _, text in result_problems(run)] == ["is missing"]


def test_a_result_that_was_only_begun_has_no_problem(run: Run):
    """A killed process leaves a result without checks and without chunks."""
    shutil.rmtree(Path(run.location).with_suffix(".analysis.zarr") / "found/values/c")
    change(run, "found", lambda document: document["attributes"].clear())
    assert list(result_problems(run)) == []


def test_chunks_without_end_are_a_problem_and_are_not_read(run: Run):
    change(run, "found/values", lambda document: document.update(shape=[1 << 62]))
    [(place, text)] = result_problems(run)
    assert place == "found/values"
    assert "more than any result has" in text
