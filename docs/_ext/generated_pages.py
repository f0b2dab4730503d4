"""Write the pages of the reference that follow from the source code."""

import io
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

from error_messages import find_messages
from public_names import documented_names

DOCS = Path(__file__).parent.parent
ROOT = DOCS.parent

INTRODUCTION = """\
A message says what was found, what was expected, and what to do. Each entry shows a message as the
source code has it, with placeholders in braces, the class of the error, and the module. The page has every
text of the source code that is a sentence, so also notes that commands print, and sentences that
are put together to a message. Press Ctrl+F and type some words of your message."""

TOPICS = {
    "Recording": (
        "trajstore/recording",
        "trajstore/tracking",
        "trajstore/sketch_torch",
        "trajstore/sketch",
        "trajstore/integrations",
    ),
    "Stores": (
        "trajstore/store",
        "trajstore/format",
        "trajstore/reading",
        "trajstore/planning",
        "trajstore/cli",
    ),
    "Analyses": ("analyzers",),
    "Experiments": ("train",),
}
"""Folders whose messages each section of the page on messages lists."""


def error_page() -> str:
    """Return the index of the messages of errors and warnings."""
    lines = ["# Messages of errors and warnings", "", INTRODUCTION]
    listed = {folder for folders in TOPICS.values() for folder in folders}
    others = (
        f"trajstore/{path.name}"
        for path in sorted((ROOT / "trajstore").iterdir())
        if (path.is_dir() or path.suffix == ".py")
        and f"trajstore/{path.name}" not in listed
    )
    topics = TOPICS | {"Experiments": (*TOPICS["Experiments"], *others)}
    for topic, folders in topics.items():
        lines += ["", f"## {topic}", ""]
        messages = {m for folder in folders for m in find_messages(ROOT, folder)}
        for message in sorted(messages, key=lambda m: (m.text.casefold(), m)):
            text = " ".join(message.text.split()).replace("`", "")
            lines += [f"`{text}`", f": {message.kind}, in `{message.file}`", ""]
    return "\n".join(lines)


def scripts() -> dict[str, Any]:
    """Return the modules of the console scripts by the names of the scripts."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {
        name: import_module(target.partition(":")[0])
        for name, target in project["scripts"].items()
    }


def help_text(module: Any, *arguments: str) -> str:
    """Return what a console script prints in a terminal of 80 columns."""
    printed = io.StringIO()
    environment = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
    with (
        patch.object(sys, "argv", list(arguments)),
        patch.dict(os.environ, environment),
        redirect_stdout(printed),
    ):
        try:
            module.main()
        except SystemExit as end:
            if end.code:
                raise RuntimeError(printed.getvalue()) from end
    text = re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue())
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def command_page(script: str, module: Any) -> str:
    """Return the page of a console script, with the help of each of its commands."""
    lines = [f"# {script}", "", *_block(help_text(module, script, "--help"))]
    for name, command in module.COMMANDS.items():
        text = help_text(module, script, name, "--help")
        lines += ["", f"## {script} {name}", "", command.summary, "", *_block(text)]
        if choices := re.search(r"\{(\w[\w-]*),", text.partition("\n\n")[0]):
            lines += [
                "",
                f"The options after `{choices[1]}`, and after the other names:",
                "",
            ]
            lines += _block(help_text(module, script, name, choices[1], "--help"))
    return "\n".join(lines)


def _block(text: str) -> list[str]:
    return ["```text", text, "```"]


def write_pages() -> None:
    """Write the generated pages that have changed."""
    with _working_directory(ROOT):
        pages = {
            f"commands/{name}.md": command_page(name, module)
            for name, module in scripts().items()
        }
    pages["messages.md"] = error_page()
    documented = documented_names()
    for page in (DOCS / "reference/generated").glob("*.rst"):
        if page.stem not in documented:
            page.unlink()  # a name that an earlier version had
    for name, text in pages.items():
        path = DOCS / "reference" / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text() != text + "\n":
            path.write_text(text + "\n")


@contextmanager
def _working_directory(path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


def setup(app: Any) -> dict[str, bool]:
    """Generate the pages when a build begins."""
    app.connect("builder-inited", lambda _app: write_pages(), priority=100)
    return {"parallel_read_safe": True}
