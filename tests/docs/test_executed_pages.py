"""Pages that show the output of their code show what the code prints."""

import re
import runpy
from collections.abc import Callable
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

PROGRAM = re.compile(r"^```python\n.*?^```\n", re.DOTALL | re.MULTILINE)
"""The first program of a page; that of the tutorial trains."""


Names = dict[str, Any]


def gamma(names: Names, epoch: int) -> float:
    return float(names["means"].gamma[epoch])


def angle(names: Names, epoch: int) -> float:
    return float(np.degrees(np.arccos(gamma(names, epoch))))


PROSE: dict[str, Callable[[Names], list[float]]] = {
    r"falls from ([\d.]+) to ([\d.]+):": lambda n: [
        n["means"].distance[i] for i in (0, -1)
    ],
    r"It is ([\d.]+) in the first epoch: .* an angle of (\d+) degrees. In epoch 9": (
        lambda n: [gamma(n, 0), angle(n, 0)]
    ),
    r"In epoch 9 it is ([\d.]+), an angle of (\d+) degrees": lambda n: [
        gamma(n, 9),
        angle(n, 9),
    ],
    r"in a space of ([\d,]+) dimensions, two random directions have a cosine of about (\d\.\d+)": (
        lambda n: [n["run"].layout.n_params, n["run"].layout.n_params ** -0.5]
    ),
    r"how exact the estimate is: here to ([\d.]+), so ([\d.]+) and ([\d.]+) in two": (
        lambda n: [n["means"].gamma_stderr[12], gamma(n, 12), gamma(n, 15)]
    ),
    r"In the first epoch lolr is (\d+), in epoch 9 it is ([\d.]+):": lambda n: [
        n["means"].lolr[i] for i in (0, 9)
    ],
    r"Every gradient of this network takes (\d+) kB": lambda n: [
        4e-3 * n["run"].layout.n_params
    ],
    r"windows of one epoch, here (\d+) steps; at both ends of the run they are shorter, so "
    r"there are (\d+)": lambda n: [n["run"].spec.steps_per_epoch, n["run"].n_windows],
}
"""Numbers in the text of the tutorial, and what they round."""


def check_prose(page: str, names: Names) -> None:
    text = " ".join(page.split())
    for pattern, numbers in PROSE.items():
        match = re.search(pattern, text)
        assert match, pattern
        for written, value in zip(match.groups(), numbers(names), strict=True):
            digits = written.replace(",", "")
            unit = 10.0 ** -len(digits.partition(".")[2])
            # On another processor, sums in another order grow along a training run.
            allowed = 0.5 * unit + 0.05 * abs(float(value))
            assert abs(float(digits) - float(value)) <= allowed, (pattern, written)
    twice = names["gamma"][9] / names["walk"].values[9]
    assert twice > 2, "more than twice as large"


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
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    page = (DOCS / name).read_text()
    if name == "meaning.md":  # it analyses the tutorial's run
        tutorial = (DOCS / "tutorial.md").read_text()
        MODULE["executed"](PROGRAM.findall(tutorial)[0], tmp_path, {})
    names: Names = {}
    new = MODULE["executed"](page, tmp_path, names)
    outputs = SHOWN.findall(page)
    assert len(outputs) >= 1
    for found, expected in zip(SHOWN.findall(new), outputs, strict=True):
        assert_same_output(found, expected)
    if name == "tutorial.md":
        assert (tmp_path / "geometry.png").stat().st_size > 20_000
        check_prose(page, names)


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
