"""A shell completes commands and options with the printed script."""

import shutil
import subprocess
from pathlib import Path

import pytest

from trajstore.cli import main as cli


@pytest.fixture(name="script", scope="module")
def _script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "traj-store.sh"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["traj-store", "--completion"])
        printed: list[str] = []
        patch.setattr("sys.stdout.write", printed.append)
        cli.main()
    path.write_text("".join(printed))
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["traj-store", "ver"], ["verify"]),
        (["traj-store", "--v"], ["--version"]),
        (["traj-store", "info", "--j"], ["--json"]),
        (["traj-store", "plan", "--steps-"], ["--steps-per-epoch"]),
        (["traj-store", "info", "run"], []),
    ],
    ids=" ".join,
)
def test_bash_completes(script: Path, line: list[str], expected: list[str]):
    words = " ".join(line)
    code = (
        f"source {script}; COMP_WORDS=({words}); COMP_CWORD={len(line) - 1}; "
        '_traj_store; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == expected
    assert done.stderr == ""
