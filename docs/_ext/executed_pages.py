"""Execute the code of a page, and write what it prints into the page.

``python docs/_ext/executed_pages.py`` does this for `PAGES`, and replaces their figures.
"""

import io
import os
import re
import runpy
import shlex
import sys
import tempfile
from contextlib import chdir, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

DOCS = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(python|console|text)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)

PAGES = ("tutorial.md", "meaning.md", "checking.md")
"""Pages that show the output of their code."""

SCRIPTS = {
    "traj-analyze": "analyzers.cli",
    "traj-store": "trajstore.cli.main",
    "traj-train": "train.cli",
}


def executed(text: str, folder: Path, names: dict[str, Any] | None = None) -> str:
    """Execute the blocks of a page in a folder; return the page with what they print.

    A block of text that follows a block of code is replaced by the output of the code.
    """
    names = {} if names is None else names
    printed = ""

    def replace(block: re.Match[str]) -> str:
        nonlocal printed
        language, code = block.groups()
        if language == "text":
            return f"```text\n{printed}```\n"
        run = _run_python if language == "python" else _run_commands
        with chdir(folder):
            printed = run(code, names).replace(f"{folder}/", "")
        return block.group()

    return BLOCK.sub(replace, text)


def _run_python(code: str, names: dict[str, Any]) -> str:
    output = io.StringIO()
    with redirect_stdout(output):
        exec(compile(code, "page", "exec"), names)
    return output.getvalue()


def _run_commands(text: str, _names: dict[str, Any]) -> str:
    """Run the lines that begin with $ and a script of this project."""
    output = io.StringIO()
    for line in text.splitlines():
        prompt, *arguments = shlex.split(line, comments=True) or [""]
        if prompt != "$" or arguments[0] not in SCRIPTS:
            continue
        environment = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
        with (
            patch.object(sys, "argv", arguments),
            patch.dict(os.environ, environment),
            redirect_stdout(output),
            redirect_stderr(io.StringIO()),
        ):
            import_module(SCRIPTS[arguments[0]]).main()
    lines = [line.rstrip() for line in output.getvalue().splitlines()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Execute the pages, and keep their output and figures; draw the picture of README."""
    with tempfile.TemporaryDirectory() as folder:
        for name in PAGES:
            page = DOCS / name
            page.write_text(executed(page.read_text(), Path(folder).resolve()))
        figure = DOCS / "images/tutorial/geometry.png"
        figure.parent.mkdir(exist_ok=True)
        figure.write_bytes((Path(folder) / "geometry.png").read_bytes())
    drawn = runpy.run_path(str(DOCS / "gallery/plot_one_recording.py"))["figure"]
    drawn.savefig(DOCS / "images/one-recording.png", dpi=110)


if __name__ == "__main__":
    main()
