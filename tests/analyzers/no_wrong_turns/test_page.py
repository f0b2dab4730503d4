"""Test ``analyzers.no_wrong_turns.page``."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from analyzers.no_wrong_turns.claims.engine import findings
from analyzers.no_wrong_turns.curves import AS_PUBLISHED
from analyzers.no_wrong_turns.figures import FIGURES
from analyzers.no_wrong_turns.page import write_page
from analyzers.no_wrong_turns.runs import TrainedRun


@pytest.fixture(scope="module")
def written(
    trained_runs: dict[str, TrainedRun], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[TrainedRun]]:
    """Write a page from runs that do not suffice for all figures."""
    names = ("base", "batch-4", "noise", "sm")
    runs = [trained_runs[name] for name in names]
    out = tmp_path_factory.mktemp("docs")
    return write_page(runs, out, epochs=AS_PUBLISHED)[0], runs


def sections(page: Path) -> dict[str, str]:
    parts = re.split(
        r"^## (?:Figure )?(\w+): .*$", page.read_text(), flags=re.MULTILINE
    )
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_figure_has_a_section(written: tuple[Path, list[TrainedRun]]):
    page, _ = written
    assert page.name == "paper.md"
    ours = ["Controls", "Measurements", "Theory"]
    assert list(sections(page)) == [*map(str, range(1, 15)), *ours]


def test_statements_follow_their_figures(written: tuple[Path, list[TrainedRun]]):
    page, runs = written
    by_name = sections(page)
    found = findings(runs)
    assert len(found) >= 20
    for f in found:
        name = "Controls" if f.figure == "controls" else f.figure
        row = f"| {f.claim} | **{f.verdict}** | {f.numbers} |"
        assert by_name[name].count(row) == 1
        assert page.read_text().count(f.claim) == 1


def test_images_exist_and_are_small(written: tuple[Path, list[TrainedRun]]):
    page, _ = written
    linked = re.findall(r"!\[.*\]\((.*)\)", page.read_text())
    files = sorted(str(p.relative_to(page.parent)) for p in page.parent.rglob("*.png"))
    assert sorted(linked) == files
    for name in files:
        assert plt.imread(page.parent / name).std() > 0.01
        assert (page.parent / name).stat().st_size < 80_000
    assert plt.get_fignums() == []


def test_figures_without_runs_say_what_they_need(
    written: tuple[Path, list[TrainedRun]],
):
    page, _ = written
    for number in ("7", "9", "10", "11", "12", "14"):
        section = sections(page)[number]
        assert "![" not in section
        assert f"Figure {number} needs {FIGURES[number].needs}; found 4 runs" in section


def test_page_says_that_data_is_embedded_and_what_is_not_known(
    written: tuple[Path, list[TrainedRun]],
):
    page, _ = written
    assert "Data: shapes (embedded data), sm." in page.read_text()
    for number, figure in FIGURES.items():
        assert figure.note in sections(page)[number.capitalize()]


def test_page_without_runs_is_refused(tmp_path: Path):
    with pytest.raises(
        ValueError,
        match=r"found no complete run .*settings that traj-train stores.* use traj-analyze",
    ):
        write_page([], tmp_path / "docs", epochs=AS_PUBLISHED)
    assert list(tmp_path.iterdir()) == []
