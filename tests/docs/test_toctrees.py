"""The documentation site is complete, and its settings can be read without Sphinx."""

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
GENERATED = {"auto_gallery/index", "reference/commands/index", "reference/messages"}
"""Entries whose files a build makes, or whose entries are made by a build."""


def entries(page: Path) -> list[str]:
    """Return the entries of the toctrees of a page."""
    toctrees = re.findall(
        r"^```\{toctree\}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
    )
    lines = [line.strip() for toctree in toctrees for line in toctree.splitlines()]
    lines = [line for line in lines if line and not line.startswith(":")]
    return [re.sub(r".*<(.+)>", r"\1", line) for line in lines]


def test_every_page_is_in_the_contents_once():
    listed = entries(DOCS / "index.md")
    assert len(listed) == len(set(listed)) >= 25
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    pages |= {f"reference/{path.stem}" for path in DOCS.glob("reference/*.rst")}
    missing = pages - set(listed)
    assert missing == set(), "Add these pages to a toctree of docs/index.md."
    assert set(listed) - pages == GENERATED


def test_every_script_has_a_page():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pages = set(entries(DOCS / "reference/commands/index.md"))
    assert pages == project["scripts"].keys()


def test_pages_begin_with_one_title():
    for page in DOCS.glob("*.md"):
        text = re.sub(
            r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL
        )
        titles = re.findall(r"^# .+", text, re.MULTILINE)
        if page.stem not in {"changelog", "contributing"}:  # they include a file
            assert len(titles) == 1, page.name
            assert text.lstrip().startswith("# "), page.name


def test_other_projects_are_linked_only_on_demand():
    settings = ast.parse((DOCS / "conf.py").read_text())
    assigned = {
        node.targets[0].id: node.value
        for node in settings.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert "sphinx.ext.intersphinx" not in ast.literal_eval(assigned["extensions"])
    inventories = ast.literal_eval(assigned["intersphinx_mapping"])
    assert {"torch", "xarray", "dask", "zarr"} <= inventories.keys()
