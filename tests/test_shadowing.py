"""Scripts and commands work in a folder that has a train.py and an analyzers.py of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = sorted((ROOT / "docs/snippets").glob("*.py"))


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    for name in ("train.py", "analyzers.py"):
        (tmp_path / name).write_text(f"raise RuntimeError('imported the own {name}')\n")
    return tmp_path


def execute(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )


def blocks(page: Path) -> list[str]:
    text = page.read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_own_files_would_hide_our_packages(folder: Path):
    # This script fails because its folder is searched before PYTHONPATH.
    (folder / "script.py").write_text("import analyzers\n")
    done = execute(folder, sys.executable, "script.py")
    assert "imported the own analyzers.py" in done.stderr


@pytest.mark.parametrize("page", [*PAGES, *SNIPPETS], ids=lambda page: page.name)
def test_no_snippet_imports_what_own_files_hide(page: Path):
    codes = [page.read_text()] if page.suffix == ".py" else blocks(page)
    for code in codes:
        assert (
            re.findall(r"^\s*(?:import|from) (?:analyzers|train)\b", code, re.MULTILINE)
            == []
        )


def test_snippets_run_next_to_own_files(folder: Path):
    pytest.importorskip("torch")
    pytest.importorskip("scipy")
    (folder / "sharpness.py").write_text(
        "".join(blocks(ROOT / "docs/sharpness.md")[:2])
    )
    scripts = [
        *(ROOT / f"docs/snippets/{name}.py" for name in ("record", "analyse")),
        *(ROOT / f"docs/snippets/{name}.py" for name in ("alpha_beta", "resume")),
        folder / "sharpness.py",
    ]
    code = f"import runpy; [runpy.run_path(p) for p in {[*map(str, scripts)]}]"
    done = execute(folder, sys.executable, "-W", "ignore", "-c", code)
    assert done.returncode == 0, done.stderr
    assert (folder / "own.zarr").exists()


def test_commands_run_next_to_own_files(folder: Path, example_run: Path):
    pytest.importorskip("sklearn")
    done = execute(folder, BIN / "traj-train", "list")
    assert (done.returncode, "digits-mlp" in done.stdout) == (0, True), done.stderr
    for command in (
        (BIN / "traj-analyze", "smoothness", example_run),
        (sys.executable, "-m", "trajstore", "info", example_run),
    ):
        done = execute(folder, *command)
        assert done.returncode == 0, done.stderr


def test_the_package_is_one_module(folder: Path):
    code = (
        "from trajstore import analyzers; import analyzers as same, trajstore; "
        "assert analyzers is same is trajstore.analyzers; "
        "print(analyzers.path_geometry.__module__)"
    )
    done = execute(folder, sys.executable, "-c", code)
    assert done.stdout.strip() == "analyzers.geometry.path_geometry", done.stderr


def test_a_name_that_is_taken_is_reported(folder: Path):
    (folder / "analyzers.py").write_text("mine = True\n")
    code = "import analyzers, trajstore; trajstore.analyzers"
    done = execute(folder, sys.executable, "-c", code)
    assert re.search(
        r"ImportError: The name analyzers is taken by .*rename", done.stderr
    )
