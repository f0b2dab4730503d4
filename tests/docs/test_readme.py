"""README runs as it is, and its links work outside the repository."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest

from trajstore import open_run

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_eight_lines_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("torch")
    [code] = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    (tmp_path / "program.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("program.py")
    run = open_run("run.zarr")
    assert (run.n_steps, run.n_epochs, run.status) == (320, 20, "complete")
    assert "gamma_stderr" in capsys.readouterr().out


def on_a_package_index() -> str:
    """Return README as the build changes it."""
    settings = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = README
    for each in settings["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    return text


def test_links_of_the_package_index_lead_into_the_repository():
    repository = PROJECT["project"]["urls"]["Repository"]
    before = re.findall(r"\]\(([^)]+)\)", README)
    after = re.findall(r"\]\(([^)]+)\)", on_a_package_index())
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert len(before) == len(after) >= 20
    for old, new in zip(before, after, strict=True):
        if old.startswith(("https:", "#")):
            assert new == old
        else:
            kind = "raw" if old in pictures else "blob"
            assert new == f"{repository}/{kind}/main/{old}"
            assert (ROOT / old).exists(), old


def test_html_links_do_not_escape_the_substitutions():
    assert not re.search(r"<(a|img)\b", README)
    assert not re.search(r"^\[[^]]+\]:", README, re.MULTILINE)


def test_the_two_make_commands_exist():
    commands = re.findall(r"^    make (\w+)", README, re.MULTILINE)
    assert commands == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in commands)


def test_the_extra_of_the_install_command_exists():
    [extra] = re.findall(
        r'^    pip install "trajstore\[(\w+)\]"$', README, re.MULTILINE
    )
    assert extra in PROJECT["project"]["optional-dependencies"]


def test_the_address_of_the_repository_is_the_same_everywhere():
    """It changes in pyproject.toml and CITATION.cff when the project moves; pages need none."""
    address = PROJECT["project"]["urls"]["Repository"]
    kept = [ROOT / name for name in ("pyproject.toml", "CITATION.cff")]
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*.md")]
    found = {
        path.name: set(
            re.findall(r"https://github\.com/[\w-]+/trajstore", path.read_text())
        )
        for path in [*kept, *pages]
    }
    assert all(found[path.name] == {address} for path in kept)
    assert not any(found[path.name] for path in pages)
