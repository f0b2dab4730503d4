"""The reference of the documentation site has every public name, command and message."""

import re
import runpy
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
EXTENSIONS = ROOT / "docs/_ext"


def extension(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the names of a module of the site."""
    monkeypatch.syspath_prepend(EXTENSIONS)
    return runpy.run_path(str(EXTENSIONS / f"{name}.py"))


def test_the_reference_has_every_public_name(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torch")
    names = extension("public_names", monkeypatch)
    public, documented = names["public_names"](), names["documented_names"]()
    assert len(public) >= 70
    assert public - documented == set()


def test_modules_that_trajstore_offers_are_public(monkeypatch: pytest.MonkeyPatch):
    names = extension("public_names", monkeypatch)
    offered = names["modules_of_trajstore"]()
    assert "trajstore.curvature" in offered
    assert offered - {"trajstore.analyzers"} <= set(names["MODULES"])


def test_names_in_the_reference_exist(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torch")
    for name in extension("public_names", monkeypatch)["documented_names"]():
        module, _, attribute = name.rpartition(".")
        if module.startswith("trajstore.integrations."):
            if find_spec(module.rpartition(".")[2]) is None:
                continue
        elif module.endswith("plots"):
            module = "analyzers.plots"
        try:
            found = getattr(import_module(module), attribute)
        except ModuleNotFoundError:  # a library that is not installed
            continue
        assert found.__doc__, name


def test_the_page_of_a_script_has_every_command_and_option(
    monkeypatch: pytest.MonkeyPatch,
):
    names = extension("generated_pages", monkeypatch)
    module = names["scripts"]()["traj-store"]
    page = names["command_page"]("traj-store", module)
    headings = re.findall(r"^## traj-store (\S+)$", page, re.MULTILINE)
    assert headings == list(module.COMMANDS)
    assert re.search(r"^[│ ]+--stderr ", page, re.MULTILINE)
    assert "usage: traj-store info" in page


def test_the_page_of_training_has_the_settings_of_workloads(
    monkeypatch: pytest.MonkeyPatch,
):
    pytest.importorskip("torch")
    names = extension("generated_pages", monkeypatch)
    page = names["command_page"]("traj-train", names["scripts"]()["traj-train"])
    assert page.count("--batch-size INT") == 2  # of run and of two-run
    assert page.count("usage: traj-train run digits-resnet ") == 1


def test_messages_have_placeholders_and_the_class_of_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "part").mkdir()
    (tmp_path / "part/module.py").write_text(
        'raise ValueError(f"`{_name}` must be {1 + x}, got " + f"{self.found}.")\n'
        'warn_user("Nothing is recorded: " + reason)\n'
        "raise KeyError(name)\n"
        'self.warn_once("a key", "Two words.")\n'
        'raise ValueError(f"expected {n} checks")\n'
    )
    find = extension("error_messages", monkeypatch)["find_messages"]
    found = [(m.text, m.kind, m.file) for m in find(tmp_path, "part")]
    file = "part/module.py"
    assert found == [
        ("`{name}` must be {…}, got {found}.", "ValueError", file),
        ("Nothing is recorded: {…}", "warning", file),
        ("Two words.", "warning", file),
    ]


def test_the_index_of_messages_has_nearly_all_errors(monkeypatch: pytest.MonkeyPatch):
    page = extension("generated_pages", monkeypatch)["error_page"]()
    raised = sum(
        len(re.findall(r"^\s*raise [A-Z]\w+\(", path.read_text(), re.MULTILINE))
        for package in ("trajstore", "analyzers", "train")
        for path in (ROOT / package).rglob("*.py")
    )
    listed = len(re.findall(r"^: \w+Error, in", page, re.MULTILINE))
    assert listed >= 0.8 * raised
