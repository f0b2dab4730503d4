"""Rows that a person should hear of soon are committed early, once."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.trajstore.recording.regression import SMALL, Training, regression
from trajstore.reading.run import open_run
from trajstore.recording import write_queue
from trajstore.recording.loops import lookout
from trajstore.recording.recorder import Recorder
from trajstore.store.writer import Writer
from trajstore.trackers.reporter import Reporter

FINE = np.ones((1, 2, 2), np.float32)


def looking() -> lookout.Lookout:
    return lookout.Lookout(0.0, flush_seconds=30.0, first=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_each_kind_of_trouble_is_found_once(bad: float):
    squares = FINE.copy()
    squares[0, 1, 1] = bad
    for found in ([squares, [1.0]], [FINE, [bad]]):
        look = looking()
        assert not look.finds_trouble(FINE, np.ones(1))
        assert look.finds_trouble(np.asarray(found[0]), np.array(found[1]))
        assert not look.finds_trouble(squares, np.array([bad]))
        assert not look.is_over


@pytest.mark.parametrize("n", [1, 3, 40])
def test_a_blow_up_is_found_in_looks_at_few_or_many_rows(n: int):
    # Single large losses are common; five in succession are a blow-up.
    look, rng = looking(), np.random.default_rng(0)
    losses = rng.uniform(0.5, 1.5, 400)
    losses[::10] = 50.0
    for start in range(0, 300, n):
        assert not look.finds_trouble(FINE, losses[start : start + n])
    losses = np.full(40, 50.0)
    assert any(look.finds_trouble(FINE, losses[s : s + n]) for s in range(0, 40, n))
    assert not look.finds_trouble(FINE, losses)


def take_step(training: Training, step: int, recorder: Any, factor: float) -> None:
    training.optimizer.zero_grad()
    loss = training.loss(step) * factor
    loss.backward()
    recorder.log(loss=loss)
    training.optimizer.step()


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count commits, and let the recorder look at its rows often."""
    counts: list[int] = []
    commit = Writer.commit

    def counted(self: Writer) -> None:
        commit(self)
        counts.append(self.n_steps)

    monkeypatch.setattr(Writer, "commit", counted)
    for module in (write_queue, lookout):
        monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    return counts


@pytest.mark.parametrize("journal", [False, True])
@pytest.mark.parametrize("factor", [np.nan, 1e4])
def test_trouble_is_committed_early_and_once(
    factor: float, journal: bool, commits: list[int], tmp_path: Path
):
    torch.manual_seed(0)
    training, path = regression(), tmp_path / "run"
    for group in training.optimizer.param_groups:
        group["lr"] = 1e-9
    with Recorder(
        path, training.model, training.optimizer, journal=journal, **SMALL
    ) as recorder:
        for step in range(12):
            take_step(training, step, recorder, 1.0)
            time.sleep(0.02)
        n_before = len(commits)
        assert open_run(path).n_steps == 0
        for step in range(12, 30):
            take_step(training, step, recorder, factor)
            time.sleep(0.02)
        assert len(commits) == n_before + 1
        seen = open_run(path)
        assert 12 < seen.n_steps < 30
        early = seen.steps.load()
    # The rows that were committed early are those of the complete run.
    run = open_run(path)
    assert run.n_steps == 30
    assert run.steps.isel(step=slice(len(early.step))).load().equals(early)
    whole = np.isfinite(run.steps.loss.values)
    assert whole.all() if np.isfinite(factor) else not whole[12:].any()


def test_an_early_commit_sends_rows_to_trackers_once(
    commits: list[int], tmp_path: Path
):
    sent: list[int] = []

    class Tracker:
        def settings(self, values: Any) -> None:
            pass

        def scalars(self, step: int, values: Any, *, time: float) -> None:
            del values, time
            sent.append(step)

        def figure(self, name: str, path: Path, *, step: int) -> None:
            pass

        def page(self, name: str, path: Path) -> None:
            pass

        def close(self) -> None:
            pass

    training = regression()
    with Recorder(
        tmp_path / "run",
        training.model,
        training.optimizer,
        report_to=Reporter(to=Tracker(), every=1),
        **SMALL,
    ) as recorder:
        for step in range(20):
            take_step(training, step, recorder, np.nan if step == 5 else 1.0)
            time.sleep(0.02)
        assert len(commits) > 1
    assert sent == list(range(20))
