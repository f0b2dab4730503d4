"""What importing costs, and needs."""

import subprocess
import sys
from pathlib import Path


def test_importing_trajstore_imports_neither_torch_nor_dask():
    code = "import sys, trajstore; print(sorted({'torch', 'dask'} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_tests_are_collected_without_torch():
    """As `make no-torch` needs it."""
    code = (
        "import sys; sys.modules['torch'] = None; import pytest; "
        "sys.exit(pytest.main(['--collect-only', '-qq']))"
    )
    collected = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert collected.returncode == 0, collected.stdout[-2000:]
