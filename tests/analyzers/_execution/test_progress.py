"""Test ``analyzers._execution.progress``."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
import pytest
from dask.delayed import delayed
from rich.progress import Progress

from analyzers._execution import progress
from analyzers._execution.progress import task_progress


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Progress]:
    """Progress bars, in the order in which they are created."""
    shown: list[Progress] = []

    def remembered(**options: Any) -> Progress:
        shown.append(Progress(**options))
        return shown[-1]

    monkeypatch.setattr(progress, "Progress", remembered)
    return shown


@contextmanager
def is_closed_after(bars: list[Progress]) -> Iterator[None]:
    yield
    assert bars[0].live.is_started is False


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_bar_counts_the_tasks(bars: list[Progress], scheduler: str):
    squares = [delayed(pow)(k, 2) for k in range(7)]
    with task_progress("squaring"), dask.config.set(scheduler=scheduler):
        assert delayed(sum)(squares).compute() == 91
    [task] = bars[0].tasks
    assert task.description == "squaring"
    assert task.total == task.completed >= 7
    assert task.finished


def test_bar_starts_again_with_every_computation(bars: list[Progress]):
    with task_progress("twice"):
        delayed(sum)([delayed(pow)(k, 2) for k in range(7)]).compute()
        delayed(pow)(2, 3).compute()
    [task] = bars[0].tasks
    assert task.total == task.completed == 1


def test_nothing_is_counted_after_the_block(bars: list[Progress]):
    with task_progress("none"):
        pass
    delayed(pow)(2, 3).compute()
    assert bars[0].tasks[0].completed == 0


def test_failure_ends_the_bar_and_is_passed_on(bars: list[Progress]):
    with (
        is_closed_after(bars),
        pytest.raises(ValueError, match=r"invalid literal .*seven"),
        task_progress("failing"),
    ):
        delayed(int)("seven").compute()


def test_a_notebook_without_widgets_gets_plain_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(progress, "find_spec", lambda _: None)
    with task_progress("squaring"):
        assert delayed(pow)(3, 2).compute() == 9
    assert "squaring" in capsys.readouterr().out
