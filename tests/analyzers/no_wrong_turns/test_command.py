"""Test ``analyzers.no_wrong_turns.command``."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import tyro

from analyzers.no_wrong_turns import command
from analyzers.no_wrong_turns.figures import FIGURES

Run = Callable[..., str]


def test_figure_is_written_next_to_the_stores(
    stores: Path, tmp_path: Path, traj_analyze: Run
):
    shutil.copytree(stores / "sweep" / "sm.zarr", tmp_path / "runs" / "sm.zarr")
    printed = traj_analyze("figure", "5", "--stores", tmp_path / "runs")
    figure = tmp_path / "runs" / "figure-5.png"
    assert str(figure) in printed
    assert "From 1 run: 1 of sm." in printed
    assert plt.imread(figure).std() > 0.01
    assert plt.get_fignums() == []


def test_figure_is_written_where_it_is_wanted(
    stores: Path, tmp_path: Path, traj_analyze: Run
):
    out = tmp_path / "new" / "figures"
    for options in ([], ["--keep-final"], ["--until", 3]):
        traj_analyze("figure", 13, "--stores", stores, "--out", out, *options)
        (out / "figure-13.png").rename(out / f"{len(options)}{options[:1]}.png")
    drawn = {path.read_bytes() for path in out.iterdir()}
    assert len(drawn) == 3


def test_a_figure_without_runs_is_reported_in_one_sentence(
    example_run: Path, tmp_path: Path, refused: Run
):
    shutil.copytree(example_run, tmp_path / "run.zarr")
    assert refused("figure", "4", "--stores", tmp_path) == (
        "traj-analyze: Figure 4 needs a run of a network; found no complete run with the "
        "training settings of traj-train."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run.zarr"]


def test_paper_prints_statements_for_programs(
    stores: Path, tmp_path: Path, traj_analyze: Run
):
    shutil.copytree(stores / "sweep" / "sm.zarr", tmp_path / "runs" / "sm.zarr")
    printed = traj_analyze(
        "paper", "--stores", tmp_path / "runs", "--out", tmp_path / "docs", "--json"
    )
    found = json.loads(printed)
    assert found["page"] == str(tmp_path / "docs" / "paper.md")
    assert {"claim", "figure", "verdict", "numbers"} == found["statements"][0].keys()


def test_paper_writes_a_page(stores: Path, tmp_path: Path, traj_analyze: Run):
    shutil.copytree(stores / "sweep" / "sm.zarr", tmp_path / "runs" / "sm.zarr")
    printed = traj_analyze(
        "paper", "--stores", tmp_path / "runs", "--out", tmp_path / "docs"
    )
    page = tmp_path / "docs" / "paper.md"
    assert str(page) in printed
    assert "from 1 run: 1 of sm" in page.read_text()
    assert (tmp_path / "docs/images/paper/figure-5.png").exists()


@pytest.mark.parametrize("number", FIGURES)
def test_every_figure_is_accepted(number: str, tmp_path: Path):
    arguments = [number, "--stores", str(tmp_path)]
    with pytest.raises(ValueError, match=r"needs .*; found no complete run"):
        tyro.cli(command.figure, args=arguments)
