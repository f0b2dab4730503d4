"""The signature, the snapshots and the end of a recorder."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

from trajstore.reading.run import open_run

torch = pytest.importorskip("torch")


import trajstore
from tests.trajstore.recording.float64_tables import (
    assert_tables_match,
)
from tests.trajstore.recording.regression import (
    SMALL,
    count_hooks,
    flat,
    iterate,
    regression,
    take_step,
)
from trajstore.recording.options import RecorderKeywords, RecorderOptions
from trajstore.recording.recorder import Recorder, no_op_recorder


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    training = regression()
    with Recorder(
        tmp_path / "fixture", training.model, training.optimizer, **SMALL
    ) as recorder:
        yield recorder


def test_snapshots_are_iterates_bit_for_bit(tmp_path: Path):
    training = regression()
    path = tmp_path / "run"
    with Recorder(path, training.model, training.optimizer, **SMALL) as recorder:
        expected = {}
        for step in range(4):
            if step in {0, 3}:
                expected[f"at {step}/.."] = iterate(training)
                recorder.snapshot(f"at {step}/..")
            take_step(training, step)
        recorder.flush()
        assert set(open_run(path).snapshots) == set(expected)
    run = open_run(path)
    for (name, tensors), step in zip(expected.items(), (0, 3), strict=True):
        entry = run.stored.document.snapshots[name]
        assert entry.step == step
        assert np.array_equal(run.stored.array(entry.array)[:], flat(run, tensors))


@pytest.mark.parametrize("name", ["", "final", "used"], ids=repr)
def test_names_of_snapshots_are_not_empty_nor_used(name: str, recorder: Recorder):
    recorder.snapshot("used")
    with pytest.raises(ValueError, match=rf"cannot be called '{name}'.*\['used'\]"):
        recorder.snapshot(name)


def test_closing_twice_is_closing_once(tmp_path: Path):
    training = regression()
    recorder = Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL)
    assert count_hooks(training.optimizer) == 2
    take_step(training, 0)
    recorder.close()
    recorder.close()
    assert count_hooks(training.optimizer) == 0
    take_step(training, 1)
    run = open_run(tmp_path / "run")
    assert (run.n_steps, run.status) == (1, "complete")


def test_closing_inside_the_context_is_closing(tmp_path: Path):
    training = regression()
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, **SMALL
    ) as recorder:
        take_step(training, 0)
        recorder.close()
    assert open_run(tmp_path / "run").status == "complete"


@pytest.mark.parametrize(
    "use",
    [lambda r: r.flush(), lambda r: r.snapshot("late")],
    ids=["flush", "snapshot"],
)
def test_a_closed_recorder_says_so(use: Callable[[Recorder], None], tmp_path: Path):
    training = regression()
    recorder = Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL)
    recorder.close()
    with pytest.raises(RuntimeError, match="The recorder is closed"):
        use(recorder)


@pytest.mark.parametrize(
    "use", [lambda r: r.log(loss=1), lambda r: r.start_epoch()], ids=["log", "epoch"]
)
def test_a_closed_recorder_takes_no_more(
    use: Callable[[Recorder], None], tmp_path: Path
):
    training = regression()
    recorder = Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL)
    recorder.close()
    with pytest.raises(RuntimeError, match="The recorder is closed"):
        use(recorder)


def test_a_change_after_the_last_step_is_warned_about(tmp_path: Path):
    training = regression()
    recorder = Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL)
    take_step(training, 0)
    with torch.no_grad():
        next(training.model.parameters())[2, 3] += 0.5
    with pytest.warns(UserWarning, match="changed since the last optimizer step") as w:
        recorder.close()
    assert w[0].filename == __file__
    run = open_run(tmp_path / "run")
    assert np.array_equal(run.stored.array("final")[:], flat(run, iterate(training)))


def test_a_failed_step_does_not_count_as_a_change_of_the_parameters(tmp_path: Path):
    training = regression()
    with Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL):
        take_step(training, 0)
        take_step(training, 1)
        handle = training.optimizer.register_step_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError, match="by zero"):
            take_step(training, 2)
        handle.remove()


def test_rows_go_on_after_a_step_that_failed(tmp_path: Path):
    training = regression()
    with Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL):
        take_step(training, 0)
        handle = training.optimizer.register_step_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError, match="by zero"):
            take_step(training, 1)
        handle.remove()
        second = take_step(training, 1)
    run = open_run(tmp_path / "run")
    assert run.n_steps == 2
    squares = [np.square(g).sum() for g in second.gradient.values()]
    np.testing.assert_allclose(run.steps.grad_sq[1], squares, rtol=1e-6)


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_ends_the_recording(
    exception: type[BaseException], tmp_path: Path
):
    training = regression()
    with (  # noqa: PT012
        pytest.raises(exception, match="as raised") as raised,
        Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL),
    ):
        trace = [take_step(training, step) for step in range(3)]
        raise exception("as raised")
    assert not hasattr(raised.value, "__notes__")
    assert count_hooks(training.optimizer) == 0
    run = open_run(tmp_path / "run")
    assert run.status == "failed"
    assert np.array_equal(run.stored.array("final")[:], flat(run, iterate(training)))
    assert_tables_match(run, trace)


def test_an_exception_before_a_step_leaves_the_last_row_alone(tmp_path: Path):
    training = regression()
    with (  # noqa: PT012
        pytest.raises(ValueError, match="lost"),
        Recorder(
            tmp_path / "run", training.model, training.optimizer, **SMALL
        ) as recorder,
    ):
        recorder.log(loss=1.0)
        take_step(training, 0)
        recorder.log(loss=99.0)
        raise ValueError("lost")
    assert open_run(tmp_path / "run").steps.loss.values.tolist() == [1.0]


# --- the public API -----------------------------------------------------------------


def test_help_shows_every_parameter_with_its_type():
    parameters = inspect.signature(trajstore.Recorder).parameters
    assert len(parameters) == 26
    assert list(parameters)[:3] == ["path", "model", "optimizer"]
    for parameter in parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
    keywords = [p for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert len(keywords) == 23
    assert all(p.default is not inspect.Parameter.empty for p in keywords)
    documented = inspect.getdoc(trajstore.Recorder)
    assert documented is not None
    for name in parameters:
        assert f"\n{name} : " in documented, name


def test_options_are_the_keyword_arguments_of_the_recorder():
    parameters = inspect.signature(Recorder.__init__).parameters.values()
    expected = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert get_type_hints(RecorderOptions) == expected
    assert get_type_hints(RecorderKeywords) == expected


def test_another_processs_recorder_does_nothing():
    with no_op_recorder() as recorder:
        recorder.log(loss=1.0)
        recorder.log_samples([1, 2])
        recorder.measure("whole")
        recorder.take_gradient()
        recorder.start_epoch()
        recorder.snapshot("here")
        recorder.flush()
        assert recorder.state_dict() == {}
    recorder.log(loss=1.0)
