"""Notebooks in docs run without warnings, and hold the outputs of every cell."""

import runpy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("ipykernel")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

FOLDER = Path(__file__).parent.parent / "docs/notebooks"


def kinds(notebook: Any) -> list[list[str]]:
    """Return the kinds of the outputs of every code cell."""
    return [
        [
            f"{output.output_type} {', '.join(sorted(output.get('data', [])))}"
            for output in cell.outputs
            if output.get("name") != "stdout"
        ]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)
    executed = runpy.run_path(str(FOLDER / "execute.py"))["executed"]
    found = executed(path, str(tmp_path))
    # Warnings and tracebacks would be outputs of their own.
    assert kinds(found) == kinds(nbformat.read(path, as_version=4))
    assert not any("stream" in kind for cell in kinds(found) for kind in cell)
    numbers = [c.execution_count for c in found.cells if c.cell_type == "code"]
    assert numbers == [*range(1, len(numbers) + 1)]
    assert str(tmp_path) not in nbformat.writes(found)
