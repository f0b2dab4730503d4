"""Recorded runs and their settings."""

import pytest

from analyzers.no_wrong_turns.runs import TrainedRun, trained
from trajstore.reading.run import Run


@pytest.fixture(scope="session")
def trained_runs(paper_runs: dict[str, Run]) -> dict[str, TrainedRun]:
    """Return the runs of `paper_runs` with their settings, by name."""
    return {name: trained(run) for name, run in paper_runs.items()}
