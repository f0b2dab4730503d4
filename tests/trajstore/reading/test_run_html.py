"""Test the HTML of runs and recorders, and that names from stores are inert in it."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trajstore import Recorder, open_run
from trajstore.format.html import MAX_TEXT, facts, names, sparkline
from trajstore.reading.run_html import MAX_CHUNKS, POINTS, sampled_steps

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='alert(1)",
    "</svg><b>",
    "&amp;",
    "$\\frac$",
    "\x1b[31mred",
    "\u202egnp.exe",
    "a\nb",
    "x" * 5000,
]


def parsed(html: str) -> ET.Element:
    """Parse HTML, which must be well formed and hold no elements but ours."""
    root = ET.fromstring(html)
    tags = {element.tag for element in root.iter()}
    allowed = {"div", "strong", "table", "tbody", "tr", "th", "td", "svg", "polyline"}
    assert tags <= allowed | {"small"}
    attributes = {name for element in root.iter() for name in element.attrib}
    shape = {"width", "height", "role", "aria-label", "points", "fill", "stroke"}
    assert attributes <= shape | {"style", "stroke-width"}
    return root


def rows_of(root: ET.Element) -> dict[str, str]:
    return {row[0].text or "": row[1].text or "" for row in root.iter("tr")}


def test_a_run_says_what_it_holds(example_run: Path):
    run = open_run(example_run)
    root = parsed(run._repr_html_())
    rows = rows_of(root)
    assert rows["store"] == str(example_run)
    assert rows["status"] == "complete"
    assert (rows["steps"], rows["epochs"]) == ("60", "5")
    assert rows["parameters"] == "963; layers: 4"
    assert rows["snapshots"] == "middle"
    size = sum(p.stat().st_size for p in example_run.rglob("*") if p.is_file())
    assert rows["size"] == f"{size / 1000:.3g} kB"
    [line] = root.iter("polyline")
    assert len(line.attrib["points"].split()) == 60
    losses = run.steps.loss.values
    [label] = root.iter("small")
    assert label.text == (
        f"loss: {losses[0]:.4g} at step 0, {losses[-1]:.4g} at step 59"
    )


def test_a_recorder_says_how_far_it_is(tmp_path: Path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(tmp_path / "run.zarr", model, optimizer)
    for _ in range(3):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    rows = rows_of(parsed(recorder._repr_html_()))
    assert (rows["status"], rows["steps"]) == ("recording", "3")
    assert rows["committed"].startswith("0 steps, ")
    recorder.flush()
    assert rows_of(parsed(recorder._repr_html_()))["committed"].startswith("3 steps, ")
    run = open_run(tmp_path / "run.zarr")
    assert "run.refresh()" in rows_of(parsed(run._repr_html_()))["note"]
    recorder.close()
    rows = rows_of(parsed(recorder._repr_html_()))
    assert rows["status"] == "closed"
    assert run.n_steps == 3
    assert run.refresh().status == "complete"


def test_a_recorder_that_does_nothing_says_so():
    recorder = Recorder.__new__(Recorder)
    assert "records nothing in this process" in recorder._repr_html_()


def test_names_are_inert(tmp_path: Path):
    folder = tmp_path / "run <b>&'\".zarr"
    tensors = {name: torch.nn.Parameter(torch.ones(2)) for name in HOSTILE}
    optimizer = torch.optim.SGD(tensors.values(), lr=0.1)
    options: dict[str, Any] = {"sketch_bits": 64, "probes": 16}
    with Recorder(folder, tensors, optimizer, **options) as recorder:
        for k in range(2):
            sum((k + 1) * (t**2).sum() for t in tensors.values()).backward()
            recorder.log(**dict.fromkeys(HOSTILE, 1.0))
            for name in HOSTILE:
                recorder.measure(name)
            optimizer.step()
        recorder.snapshot(HOSTILE[0])
        during = parsed(recorder._repr_html_())
    run = open_run(folder)
    for html in [run._repr_html_(), *(run.measured(n)._repr_html_() for n in HOSTILE)]:
        text = "".join(parsed(html).itertext())
        assert text.isprintable()
        assert len(html) < 12_000
    assert rows_of(during)["store"] == str(folder)
    assert "<script>" in rows_of(parsed(run._repr_html_()))["scalars"]
    assert "<script>" not in run._repr_html_()


def test_long_texts_and_lists_are_cut():
    assert len(rows_of(parsed(facts("t", {"a": "<" * 9999})))["a"]) <= MAX_TEXT + 5
    assert names([str(i) for i in range(20)]).endswith("11 and 8 more")
    assert names([]) == "none"


@pytest.mark.parametrize(
    ("values", "n_drawn"),
    [
        ([np.nan, np.inf, 1.0], 0),
        ([1.0, 1.0, 1.0], 3),
        ([1.0, np.nan, -1e308, 1e308], 3),
        ([], 0),
    ],
)
def test_sparklines_leave_out_values_that_are_not_finite(
    values: list[float], n_drawn: int
):
    drawn = sparkline("loss", np.arange(len(values)), np.array(values))
    points = re.findall(r'points="([^"]*)"', drawn)
    assert sum(len(p.split()) for p in points) == n_drawn
    assert "nan" not in "".join(points)


@pytest.mark.parametrize("n_steps", [2, 97, 8192 * 55 + 3])
def test_a_sparkline_reads_few_chunks(n_steps: int):
    steps = sampled_steps(n_steps, 8192)
    assert (steps[0], steps[-1]) == (0, n_steps - 1)
    assert len(steps) <= POINTS
    assert len(np.unique(steps // 8192)) <= MAX_CHUNKS


def test_a_measurement_is_refreshed(tmp_path: Path, train_small: Callable[..., Any]):
    path = tmp_path / "run.zarr"
    train_small(partial(Recorder, path), sketch_bits=64, probes=16, updates=True)
    updates = open_run(path).measured("update")
    assert updates.refresh().group.name == "update"
    assert "update, 60 rows" in updates._repr_html_()
