"""Execute the notebooks of this folder, and store their outputs: `make notebooks`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
TIMEOUT = 600
"""Seconds that a cell may take."""


def executed(path: Path, folder: str) -> Any:
    """Return a notebook with its outputs; it runs in a folder, whose path they do not show."""
    notebook = nbformat.read(path, as_version=4)
    options: dict[str, Any] = {"timeout": TIMEOUT, "record_timing": False}
    client = NotebookClient(
        notebook, resources={"metadata": {"path": folder}}, **options
    )
    client.execute()
    text = nbformat.writes(notebook)
    for shown in (str(Path(folder).resolve()), folder):
        text = text.replace(shown, "/home/me")
    return nbformat.reads(text, as_version=4)


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        with TemporaryDirectory() as folder:
            nbformat.write(executed(path, folder), path)
