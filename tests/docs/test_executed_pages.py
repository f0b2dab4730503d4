"""Pages that show the output of their code show what the code prints."""

import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"
MODULE = runpy.run_path(str(DOCS / "_ext/executed_pages.py"))
NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")
SHOWN = re.compile(
    r"^```python\n[^`]*^```\n\n```text\n(.*?)^```", re.DOTALL | re.MULTILINE
)
"""The output of Python code; that of commands contains dates and sizes."""


def assert_same_output(new: str, old: str) -> None:
    assert NUMBER.sub("", new).split() == NUMBER.sub("", old).split()
    # Sums in another order, on another processor, grow along a training run.
    found, expected = (
        [float(number) for number in NUMBER.findall(text)] for text in (new, old)
    )
    np.testing.assert_allclose(found, expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("name", MODULE["PAGES"])
def test_pages_show_what_their_code_prints(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if name == "tutorial.md":
        pytest.importorskip("torch")
        pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    page = (DOCS / name).read_text()
    new = MODULE["executed"](page, tmp_path)
    outputs = SHOWN.findall(page)
    assert len(outputs) >= 2
    for found, expected in zip(SHOWN.findall(new), outputs, strict=True):
        assert_same_output(found, expected)
    if name == "tutorial.md":
        assert (tmp_path / "geometry.png").stat().st_size > 20_000


def test_output_replaces_the_block_after_the_code(tmp_path: Path):
    page = (
        "Text\n```python\nx = 3\n```\n```python\nprint(x)\n```\n```text\n```\nEnd\n"
        "```console\n$ other\n```\n"
    )
    names: dict[str, Any] = {}
    new = MODULE["executed"](page, tmp_path, names)
    assert new == page.replace("```text\n", "```text\n3\n")
    assert names["x"] == 3


def test_a_different_output_is_noticed():
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same_output("gamma 0.46", "gamma 0.36")
    with pytest.raises(AssertionError, match="distance"):
        assert_same_output("distance 0.46", "gamma 0.46")
