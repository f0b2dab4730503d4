"""What importing costs."""

import subprocess
import sys


def test_importing_trajstore_imports_neither_torch_nor_dask():
    code = "import sys, trajstore; print(sorted({'torch', 'dask'} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
