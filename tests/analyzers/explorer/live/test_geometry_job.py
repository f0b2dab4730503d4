"""Targets that the live page asks for."""

from pathlib import Path

import pytest

from analyzers.explorer.live.geometry_job import KINDS, parse_target
from trajstore.reading.run import open_run
from trajstore.reading.target import find_target


def test_the_start_of_a_window_is_a_target(example_run: Path):
    run = open_run(example_run)
    start = int(run.windows["start"].values[-1])
    assert find_target(run, parse_target("step", f" {start} ", run)).at == (run, start)
    with pytest.raises(KeyError, match=f"No window starts at step {start + 1} "):
        parse_target("step", str(start + 1), run)


@pytest.mark.parametrize("kind", KINDS)
def test_other_texts_are_refused(kind: str, example_run: Path):
    with pytest.raises(ValueError, match=r"^Expected (the|a) "):
        parse_target(kind, "", open_run(example_run))
