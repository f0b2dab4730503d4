"""Test ``analyzers._reporting``."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from analyzers._reporting import (
    TERMINAL,
    FigureFiles,
    Output,
    decimals_of,
    make_table,
    report,
    shown_rows,
    spans,
    with_error,
)
from trajstore.reading.results import write_results
from trajstore.reading.run import Run, open_run
from trajstore.store.location import OutsideStoreError


@pytest.fixture
def run(example_run: Path, tmp_path: Path) -> Run:
    """Return a copy of a run, because results are written next to the store."""
    return open_run(shutil.copytree(example_run, tmp_path / "digits.zarr"))


def write(
    run: Run, figures: dict[str, Any], *, x: float = 1.0, output: Output = TERMINAL
) -> None:
    data = xr.Dataset({"x": ("step", [x, np.nan])}, {"label": "a"}, {"known": True})
    parts = "a note", make_table("a")
    report(
        run,
        *parts,
        data=data,
        figures=figures,
        groups=["g"],
        name="a",
        example="a",
        output=output,
    )


def test_figures_are_drawn_again_only_if_their_data_or_their_code_changed(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    drawn: list[int] = []

    def draw() -> Any:
        drawn.append(len(drawn))
        return plt.figure(figsize=(1, 1))

    formats: tuple[Any, ...] = ("png", "pdf", "svg")
    for i, format_ in enumerate(formats):
        for _ in range(2):
            write(run, {"a": draw}, output=Output(format=format_, dpi=20))
        assert len(drawn) == i + 1
    changes: list[dict[str, Any]] = [{"x": 2.0}, {"output": Output(dpi=30)}]
    for i, change in enumerate(changes):
        write(run, {"a": draw}, **change)
        assert len(drawn) == 4 + i
    (tmp_path / "code.py").touch()
    monkeypatch.setattr("analyzers._reporting.PACKAGE", tmp_path)
    write(run, {"a": draw}, **changes[-1])
    assert len(drawn) == 6


def test_one_json_document_replaces_the_tables(
    run: Run, capsys: pytest.CaptureFixture[str]
):
    write(run, {"a": plt.figure}, output=Output(json=True))
    document = json.loads(capsys.readouterr().out)
    assert document["variables"]["x"] == {
        "dims": ["step"],
        "values": [1.0, None],
        "attrs": {},
    }
    assert document["coords"]["label"]["values"] == "a"
    assert (document["run"], document["groups"]) == (run.location, ["g"])
    assert document["notes"] == ["a note"]
    assert Path(document["figures"][0]).exists()
    assert document["attrs"] == {"known": True}


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
        data=xr.Dataset(),
        figures={"one": plt.figure, "two": lambda: axes},
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
        data=xr.Dataset(),
        figures={"a": plt.figure},
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
    output = Output(format=format_, dpi=20, out=tmp_path / "new" / "folder")
    write(run, {"a": lambda: plt.figure(figsize=(3, 2))}, output=output)
    [path] = (tmp_path / "new" / "folder").iterdir()
    assert path.name == f"a.{format_}"
    assert path.read_bytes().startswith(start)
    if format_ == "png":
        assert plt.imread(path).shape[:2] == (40, 60)


@pytest.mark.parametrize("dpi", [0, -1, 9, 601])
def test_resolution_is_bounded(dpi: int):
    with pytest.raises(ValueError, match=rf"--dpi must be from 10 to 600, got {dpi}"):
        FigureFiles(dpi=dpi)
    with pytest.raises(ValueError, match=r"--dpi must be from 10 to 600"):
        Output(dpi=dpi)


@pytest.mark.parametrize("name", ["digits.figures", "digits.figures/a.png"])
def test_figures_are_not_written_through_links(name: str, run: Run, tmp_path: Path):
    outside, link = tmp_path / "outside", tmp_path / name
    if link.suffix == ".png":
        outside.write_text("theirs")
    else:
        outside.mkdir()
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    with pytest.raises(OutsideStoreError, match=f"{name} leads through a link"):
        write(run, {"a": plt.figure})
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


@pytest.mark.parametrize(
    ("errors", "shown"),
    [
        ([0.02, 0.0012], "0.3000 ±0.0200"),
        ([0.02, 0.00003], "0.30000 ±0.02000"),
        ([2e-9, 0.00003], "0.30000 ±2e-09"),
        ([2e-9, 0.003], "0.3000 ±2e-09"),
        ([0.0, 0.0], "0.3000 ±0"),
        ([np.nan, 0.001], "0.3000 ±nan"),
    ],
)
def test_errors_are_not_rounded_to_zero(errors: list[float], shown: str):
    decimals = decimals_of(np.array(errors))
    assert with_error(0.3, errors[0], decimals) == shown
