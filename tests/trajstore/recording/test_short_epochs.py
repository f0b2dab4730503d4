"""Windows of recordings whose epochs have few steps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trajstore.reading.run import Run, open_run
from trajstore.reading.target import parameters_at

torch = pytest.importorskip("torch")

from torch import nn

from tests.trajstore.recording.regression import (
    SMALL,
    Training,
    record,
    regression,
    take_step,
)
from trajstore.recording.recorder import Recorder

N_STEPS = 130


def starts(run: Run) -> list[int]:
    values: list[int] = run.windows["start"].values.tolist()
    return values


def tiny() -> Training:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    inputs = torch.randn(16, 6)

    def loss(step: int) -> Any:
        torch.manual_seed(step)
        batch = inputs + 0.1 * torch.randn(16, 6)
        return (model(batch) - batch[:, :1].sin()).square().mean()

    return Training(model, optimizer, loss)


def test_one_step_an_epoch_shares_windows(tmp_path: Path):
    run, _ = record(tmp_path / "run", tiny(), N_STEPS, steps_per_epoch=1)
    assert run.spec.shared_epochs == 50
    assert starts(run) == [*range(11), 12, 25, 60, 110]
    assert run.steps.epoch.values.tolist() == [*range(N_STEPS)]


def test_an_epoch_without_an_anchor_is_refused(tmp_path: Path):
    run, _ = record(tmp_path / "run", tiny(), N_STEPS, steps_per_epoch=1)
    assert parameters_at(run, 60).keys() == set(run.layout.names)
    message = r"start with one: 0-10, 12, 25, 60, 110\. Short epochs share an anchor"
    with pytest.raises(KeyError, match=message):
        parameters_at(run, 61)
    with pytest.raises(KeyError, match=r"110\.'$"):
        parameters_at(run, N_STEPS)


def test_every_epoch_has_an_anchor_if_the_user_wants_it(tmp_path: Path):
    run, _ = record(
        tmp_path / "run", tiny(), 30, steps_per_epoch=2, reference_every=2, **SMALL
    )
    assert run.stored.epoch_windows.keys() == set(range(15))


def test_epochs_begun_by_hand_share_windows(tmp_path: Path):
    run = record_by_hand(tmp_path / "run", tiny(), range(N_STEPS))
    assert starts(run) == [*range(0, 28, 3), 62, 114, 125]


def record_by_hand(
    path: Path, training: Training, steps: range, *, resume: Any = False
) -> Run:
    with Recorder(path, training.model, training.optimizer, resume=resume) as recorder:
        for step in steps:
            if step % 3 == 0:
                recorder.start_epoch()
            take_step(training, step, recorder)
    return open_run(path)


@pytest.mark.parametrize("at", [10, 27, 33, 58, 78, 114])
@pytest.mark.parametrize("by_hand", [False, True], ids=["counted", "by hand"])
def test_a_resumed_recording_has_the_same_windows(
    at: int, by_hand: bool, tmp_path: Path
):
    options: dict[str, Any] = {} if by_hand else {"steps_per_epoch": 3}

    def steps(recorder: Recorder, training: Training, which: range) -> None:
        for step in which:
            if by_hand and step % 3 == 0:
                recorder.start_epoch()
            take_step(training, step, recorder)

    training = tiny()
    with Recorder(
        tmp_path / "whole", training.model, training.optimizer, **options
    ) as recorder:
        steps(recorder, training, range(N_STEPS))
    training = tiny()
    first = Recorder(tmp_path / "cut", training.model, training.optimizer, **options)
    steps(first, training, range(at))
    if by_hand and at % 3 == 0:
        first.start_epoch()
    state = first.state_dict()
    first.close()
    with Recorder(
        tmp_path / "cut",
        training.model,
        training.optimizer,
        resume=state,
        **options,
    ) as second:
        steps(second, training, range(at, N_STEPS))
    assert starts(open_run(tmp_path / "cut")) == starts(open_run(tmp_path / "whole"))


@pytest.mark.parametrize(("is_earlier", "start"), [(False, 78), (True, 62)])
def test_a_recording_without_epochs_continues_with_its_windows(
    is_earlier: bool, start: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(1)
    model = nn.Linear(500, 400)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    training = Training(model, optimizer, lambda _: model.weight.square().mean())
    options: dict[str, Any] = {"total_steps": 15_650, "basis": 1, **SMALL}
    state: Any = False
    for steps in (range(50), range(50, 90)):
        with monkeypatch.context() as earlier:
            if is_earlier and not state:
                earlier.setattr("trajstore.recording.options.choose_windows", Chosen)
            recorder = Recorder(
                tmp_path / "run", model, optimizer, resume=state, **options
            )
        for step in steps:
            take_step(training, step, recorder)
        state = recorder.state_dict()
        recorder.close()
    run = open_run(tmp_path / "run")
    assert run.spec.window_steps == (None if is_earlier else 626)
    assert starts(run) == [0, start]


def test_an_earlier_recording_continues_with_a_window_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training, path = tiny(), tmp_path / "run"
    with monkeypatch.context() as earlier:
        earlier.setattr("trajstore.recording.options.choose_windows", Chosen)
        first = Recorder(path, training.model, training.optimizer, steps_per_epoch=3)
    for step in range(30):
        take_step(training, step, first)
    state = first.state_dict()
    first.close()
    assert open_run(path).spec.shared_epochs == 1
    with Recorder(
        path, training.model, training.optimizer, steps_per_epoch=3, resume=state
    ) as second:
        for step in range(30, 48):
            take_step(training, step, second)
    assert starts(open_run(path)) == [0, 1, 2, *range(3, 48, 3)]


class Chosen:
    def __init__(self, spec: Any) -> None:
        self.spec = spec


def test_short_epochs_cost_as_little_as_none_on_disk(tmp_path: Path):
    def size(name: str, **options: Any) -> int:
        path = tmp_path / name
        record(path, regression(), 400, **options)
        return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())

    plain = size("plain")
    assert size("one step", steps_per_epoch=1) < 1.1 * plain
    assert size("three steps", steps_per_epoch=3) < 1.1 * plain


def test_short_epochs_give_the_same_products(tmp_path: Path):
    plain, _ = record(tmp_path / "plain", tiny(), N_STEPS)
    short, _ = record(tmp_path / "short", tiny(), N_STEPS, steps_per_epoch=1)
    for name in ("grad_norm", "update_norm", "grad_dot_param", "param_norm"):
        np.testing.assert_allclose(
            short.steps[name], plain.steps[name], rtol=1e-5, atol=1e-6
        )
