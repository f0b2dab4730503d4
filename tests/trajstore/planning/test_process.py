"""Test ``trajstore.planning.process``."""

import json
from pathlib import Path

import pytest

from trajstore.planning.process import PROCESS_MEMORY

RESULTS = Path(__file__).parents[3] / "benchmarks/results/process_memory.json"


def test_the_memory_of_a_process_is_what_was_measured():
    measured = json.loads(RESULTS.read_text())["for recording"]
    assert pytest.approx(measured, rel=0.15) == PROCESS_MEMORY
