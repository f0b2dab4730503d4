"""Test that hostile stores and results can do no harm; `hostile_stores` makes them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import analyzers
import trajstore
from tests.analyzers import hostile_stores

MIB: int = 1024
"""Largest memory of a process, with everything that it has imported, in MiB."""


def examine(example_run: Path, folder: Path, first: int, every: int) -> list[Any]:
    run = shutil.copytree(example_run, folder / "source/run.zarr")
    analyzers.store_geometry(trajstore.open_run(run))
    script, root = hostile_stores.__file__, Path(__file__).parents[2]
    arguments = [str(run), str(folder / "work"), str(first), str(every)]
    done = subprocess.run(
        [sys.executable, script, *arguments],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]


def check(results: list[Any]) -> None:
    for result in results:
        assert result["status"] == 0, result
        assert len(result["outcomes"]) == 7, result
        assert not result["changed"], result
        assert not result["touched"], result
        assert result["peak"] < MIB, result
        crashed = [o for o in result["outcomes"].values() if o.startswith("CRASH")]
        assert not crashed, result


def test_there_are_many_cases():
    cases = hostile_stores.cases()
    assert len({case.name for case in cases}) == len(cases) >= 300


def test_a_few_hostile_stores_do_no_harm(example_run: Path, tmp_path: Path):
    check(examine(example_run, tmp_path, 7, len(hostile_stores.cases()) // 2))


@pytest.mark.slow
def test_hostile_stores_do_no_harm(example_run: Path, tmp_path: Path):
    results = examine(example_run, tmp_path, 0, 1)
    assert len(results) == len(hostile_stores.cases())
    check(results)
