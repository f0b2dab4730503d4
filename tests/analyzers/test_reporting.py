"""Test ``analyzers._reporting``."""

import shutil
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from analyzers._reporting import FigureFiles, make_table, report, shown_rows, spans
from trajstore.reading.results import write_results
from trajstore.reading.run import Run, open_run
from trajstore.store.location import OutsideStoreError


@pytest.fixture
def run(example_run: Path, tmp_path: Path) -> Run:
    """Return a copy of a run, because results are written next to the store."""
    return open_run(shutil.copytree(example_run, tmp_path / "digits.zarr"))


def test_report_shows_parts_and_locations_of_results(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    table = make_table("a")
    table.add_row("1")
    axes = plt.subplots()[1]
    report(
        run,
        table,
        "",
        "word " * 40,
        figures={"one": plt.figure(), "two": axes},
        groups=["first", "second"],
        name="found",
        example="found.x.values",
    )
    printed = capsys.readouterr().out
    note = " ".join(["word"] * 40)
    assert " ".join(printed.partition("Figures: ")[0].split()) == f"a 1 {note}"
    assert f"Figures: {tmp_path / 'digits.figures'}/\n" in printed
    results = tmp_path / "digits.analysis.zarr"
    assert f"Results: {results}\nGroups: first, second\n" in printed
    assert [path.name for path in sorted((tmp_path / "digits.figures").iterdir())] == [
        "one.png",
        "two.png",
    ]
    assert plt.get_fignums() == []

    write_results(run, "first", xr.Dataset({"x": ("step", [1.0, 2.0])}))
    names: dict[str, np.ndarray] = {}
    code = printed[printed.index("import xarray") :]
    exec(code.replace("found.x.values", "x = found.x.values"), names)
    np.testing.assert_array_equal(names["x"], [1.0, 2.0])


def test_a_single_figure_is_named(run: Run, capsys: pytest.CaptureFixture[str]):
    report(
        run,
        figures={"a": plt.figure()},
        groups=["g"],
        name="found",
        example="found",
    )
    [line] = [x for x in capsys.readouterr().out.splitlines() if "Figure" in x]
    assert line.startswith("Figure: ")
    assert Path(line.removeprefix("Figure: ")).exists()


@pytest.mark.parametrize(
    ("format_", "start"),
    [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")],
)
def test_figures_have_the_format_asked_for(
    format_: Literal["png", "pdf", "svg"], start: bytes, run: Run, tmp_path: Path
):
    files = FigureFiles(format=format_, dpi=20)
    figures = {"a": plt.figure(figsize=(3, 2))}
    report(run, figures=figures, groups=["g"], name="a", example="a", files=files)
    [path] = (tmp_path / "digits.figures").iterdir()
    assert path.name == f"a.{format_}"
    assert path.read_bytes().startswith(start)
    if format_ == "png":
        assert plt.imread(path).shape[:2] == (40, 60)


@pytest.mark.parametrize("dpi", [0, -1, 9, 601])
def test_resolution_is_bounded(dpi: int):
    with pytest.raises(ValueError, match=rf"--dpi must be from 10 to 600, got {dpi}"):
        FigureFiles(dpi=dpi)


@pytest.mark.parametrize("name", ["digits.figures", "digits.figures/a.png"])
def test_figures_are_not_written_through_links(name: str, run: Run, tmp_path: Path):
    outside, link = tmp_path / "outside", tmp_path / name
    if link.suffix == ".png":
        outside.write_text("theirs")
    else:
        outside.mkdir()
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    figures = {"a": plt.figure()}
    with pytest.raises(OutsideStoreError, match=f"{name} leads through a link"):
        report(run, figures=figures, groups=["g"], name="found", example="found")
    plt.close("all")
    assert outside.is_dir() or outside.read_text() == "theirs"
    assert outside.is_file() or not list(outside.iterdir())


def test_long_texts_in_a_table_are_folded(capsys: pytest.CaptureFixture[str]):
    table = make_table("tensor", "value", text=["tensor"])
    table.add_row("block." * 20, "1")
    Console(width=80).print(table)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "".join(line.split()[0] for line in lines[1:]) == "block." * 20


@pytest.mark.parametrize("n", [0, 1, 39, 40, 41, 100, 1001])
def test_shown_rows_are_evenly_spaced_and_limited(n: int):
    rows = shown_rows(n)
    assert len(rows) <= 40
    assert list(rows) == list(range(n))[:: rows.step]
    assert rows.step == 1 or len(range(0, n, rows.step - 1)) > 40


@pytest.mark.parametrize("n", [0, 1, 19, 20, 21, 105])
def test_spans_hold_every_step_once(n: int):
    steps = [step for span in spans(n) for step in range(n)[span]]
    assert steps == list(range(n))
    assert len(spans(n)) <= 20
