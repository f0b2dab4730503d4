"""The reference of the documentation site has every public name, command and message."""

import ast
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
        '"""This docstring is a sentence, too."""\n'
        'LIMIT: Final = 3\nSTILL = "Nothing has changed."\n"""Say that it is still."""\n'
        'raise ValueError(f"`{_name}` must be {1 + x}, got " + f"{self.found}.")\n'
        'warn_user("Nothing is recorded: " + reason)\n'
        "raise KeyError(name)\n"
        'self.warn_once("a key", "Two words.")\n'
        'self.warn_once("a key", STILL)\n'
        'raise ValueError(f"expected {n} checks")\n'
        'raise SchemaError(["Found this:", *problems, f"Do {that}."])\n'
        "def told(x):\n"
        '    "This docstring is a sentence, too."\n'
        '    yield f"{x} are told and {STILL}"\n'
        '    return "A short sentence." if x else "A sentence that is returned."\n'
    )
    module = extension("error_messages", monkeypatch)
    found = [(m.text, m.kind) for m in module["find_messages"](tmp_path, "part")]
    note = module["NOTE"]
    assert found == [
        ("A sentence that is returned.", note),
        ("Do {that}.", "SchemaError"),
        ("Found this:", "SchemaError"),
        ("`{name}` must be {…}, got {found}.", "ValueError"),
        ("Nothing has changed.", "warning"),
        ("Nothing is recorded: {…}", "warning"),
        ("Two words.", "warning"),
        ("{x} are told and Nothing has changed.", note),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "steps were recorded, but total_steps was {planned}",
        "The parameters are not the result of step {…}",
        "The parameters have changed since the last optimizer step. Their current values",
        "Values were logged, but the recorder saw no optimizer step",
        "The target x* of {location} is not finite ({note})",
        "is the recording of a different run; differences:",
        "is being written by {…}",
    ],
)
def test_messages_that_are_put_together_elsewhere_are_listed(
    text: str, monkeypatch: pytest.MonkeyPatch
):
    assert text in extension("generated_pages", monkeypatch)["error_page"]()


def words(node: ast.AST) -> list[str]:
    """Return the parts of all texts of an expression, in which a message has its words."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [" ".join(node.value.split()).replace("`", "")]
    if isinstance(node, ast.FormattedValue):
        return []  # a value
    return [text for child in ast.iter_child_nodes(node) for text in words(child)]


def test_the_index_of_messages_has_every_text_of_errors_and_warnings(
    monkeypatch: pytest.MonkeyPatch,
):
    """Texts of five words and more that raise and warn statements have are listed."""
    page = extension("generated_pages", monkeypatch)["error_page"]()
    internal = extension("error_messages", monkeypatch)["INTERNAL"]
    checked, absent = 0, []
    for package in ("trajstore", "analyzers", "train"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                name = getattr(getattr(node, "func", None), "attr", "")
                name = name or getattr(getattr(node, "func", None), "id", "")
                if not isinstance(node, ast.Raise) and not name.startswith("warn"):
                    continue
                texts = [text for text in words(node) if text.count(" ") > 3]
                checked += len(texts)
                absent += [
                    f"{path}: {text}"
                    for text in texts
                    if text not in page and not text.startswith(internal)
                ]
    assert checked > 400
    assert "\n".join(absent) == ""
