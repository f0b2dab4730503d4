"""The gallery shows every figure, and its programs need nothing but the packages."""

import ast
import os
import re
import runpy
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from analyzers import plots

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / "docs/gallery").glob("*.py"))


def test_the_gallery_shows_every_figure():
    text = "".join(path.read_text() for path in EXAMPLES)
    shown = set(re.findall(r"\bplots\.(\w+)\(", text))
    assert set(plots.__all__) - shown == set()


def test_the_order_of_the_gallery_has_every_example():
    order = runpy.run_path(str(ROOT / "docs/_ext/gallery_order.py"))["ORDER"]
    assert sorted(order) == [path.name for path in EXAMPLES]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_begin_with_a_title_and_import_no_experiments(path: Path):
    tree = ast.parse(path.read_text())
    title, underline, _ = (ast.get_docstring(tree) or "").split("\n", 2)
    assert underline == "=" * len(title)
    assert not re.search(
        r"^(from|import) (train|analyzers)\b", path.read_text(), re.MULTILINE
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # Examples start the console scripts of this environment.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    with plt.rc_context({"figure.max_open_warning": 0}):
        runpy.run_path(str(path))
    assert plt.get_fignums()
    plt.close("all")
