"""Test that opening a run parses its root document only once."""

import sys
from collections import Counter
from pathlib import Path
from types import FrameType

from tests.trajstore.handmade import write_run
from trajstore import open_run, reading

MAX_CALLS = 300
"""Python calls in files of trajstore; about 880 if every reader parses the document."""

PACKAGE = str(Path(reading.__file__).parents[1])


def calls_of_opening(path: Path) -> Counter[str]:
    """Count the calls of each function while a run is opened."""
    calls = Counter[str]()

    def count(frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            calls[f"{Path(code.co_filename).name}:{code.co_name}"] += 1

    sys.setprofile(count)
    try:
        open_run(path)
    finally:
        sys.setprofile(None)
    return calls


def test_opening_a_small_run_takes_few_calls(tmp_path: Path):
    write_run(tmp_path / "run.zarr", n_steps=10)
    calls = calls_of_opening(tmp_path / "run.zarr")
    assert (
        calls["document.py:parse_document"] == calls["run_spec.py:validate_spec"] == 1
    )
    assert sum(calls.values()) <= MAX_CALLS, calls.most_common(10)
