"""The number of changes between source files while a step is recorded."""

import sys
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import trajstore
from tests.trajstore.recording.regression import SMALL, regression
from trajstore.recording.recorder import Recorder

MAX_CHANGES = 28
"""When the recorder was one class, there were 37 changes in 57 calls."""

FOLDER = str(Path(trajstore.__file__).parent)


def files_of_calls(function: Any) -> list[str]:
    """Call a function; return the source file of every trajstore function called."""
    files = []

    def keep(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(FOLDER):
            files.append(Path(frame.f_code.co_filename).name)

    sys.setprofile(keep)
    try:
        function()
    finally:
        sys.setprofile(None)
    return files


def test_a_step_stays_in_few_files(tmp_path: Path):
    training = regression()

    def step() -> None:
        recorder.log(loss=1.0)
        training.optimizer.step()

    with Recorder(
        tmp_path / "run", training.model, training.optimizer, **SMALL
    ) as recorder:
        training.loss(0).backward()
        for _ in range(5):
            step()
        files = files_of_calls(step)
    stays = [files[0], *(b for a, b in pairwise(files) if a != b)]
    assert "recorder.py" in stays
    assert "measuring.py" in stays
    assert len(stays) - 1 <= MAX_CHANGES, (len(files), stays)
