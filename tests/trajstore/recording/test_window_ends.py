"""What is stored at the end of a window, and when it is not known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.trajstore.recording.resumable import SMALL, SPE, Training, record
from trajstore.format.arrays import ENDED, ENERGIES, SUM_SCALES
from trajstore.format.run_spec import SchemaError
from trajstore.reading.run import Run, open_run
from trajstore.recording.recorder import Recorder
from trajstore.sketch import window_sum
from trajstore.sketch.window_sum import WindowSum
from trajstore.tracking import window_sums


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let windows of a few steps have sums."""
    monkeypatch.setattr(window_sum, "LEAST_STEPS", 1)
    monkeypatch.setattr(window_sums, "LEAST_STEPS", 1)


def open_recorder(path: Path, training: Training, **options: Any) -> Recorder:
    options = SMALL | {"steps_per_epoch": SPE} | options
    return Recorder(path, training.model, training.optimizer, **options)


def is_known(run: Run) -> list[bool]:
    """Return for each window whether its sum and its energies are known."""
    known = [run.stored.window_sum(c) is not None for c in range(run.n_windows)]
    values = np.asarray(run.stored.array(ENERGIES)[...])
    finite = np.isfinite(values).all(1).tolist()
    assert finite == known[: len(finite)]
    return known


def test_the_sum_is_that_of_the_gradients_of_the_window(tmp_path: Path):
    training, sums = Training(adam=True), list[Any]()
    with open_recorder(tmp_path / "run.zarr", training) as recorder:

        def each(step: int, _recorder: Recorder) -> None:
            # The hooks of the recorder see the same gradients.
            if step % SPE == 0 and step >= SPE:
                sums.append(0)

        def add(*_: Any) -> None:
            if sums:
                named = dict(training.model.named_parameters())
                flat = layout.flatten(
                    {n: p.grad.numpy() for n, p in named.items() if p.grad is not None}
                )
                sums[-1] += flat.astype(np.float64)

        layout = recorder._session.tracker._placement.layout
        training.optimizer.register_step_pre_hook(add)
        training.run(recorder, range(3 * SPE), each)
    run = open_run(tmp_path / "run.zarr")
    last = run.n_windows - 1
    weights = np.repeat(run.windows["weights"].values[last], run.layout.blocks * 1024)
    total = WindowSum(sketch=run.stored.sketch_of(last), n_folds=run.spec.window_folds)
    expected = total.encode((weights * sums[-1]).astype(np.float32))
    signs, scales = (
        np.asarray(run.stored.array(name)[last]) for name in (ENDED[1], SUM_SCALES)
    )
    np.testing.assert_allclose(scales, expected[1], rtol=1e-4)
    assert np.unpackbits(signs ^ expected[0]).mean() < 0.02


def test_a_run_that_is_being_written_lacks_the_end_of_its_last_window(tmp_path: Path):
    training = Training(adam=True)
    recorder = open_recorder(tmp_path / "run.zarr", training)
    training.run(recorder, range(2 * SPE + 1))
    recorder.flush()
    written = open_run(tmp_path / "run.zarr")
    assert written.stored.document.n_ended == written.n_windows - 1
    assert is_known(written) == [True] * (written.n_windows - 1) + [False]
    *_, before, last = map(written.stored.block_energies, range(written.n_windows))
    assert before is not None
    np.testing.assert_array_equal(last, before)
    recorder.close()
    closed = open_run(tmp_path / "run.zarr")
    assert is_known(closed) == [True] * closed.n_windows


def test_a_window_resumed_without_a_state_has_no_sum(tmp_path: Path):
    path, checkpoint = tmp_path / "run.zarr", tmp_path / "state.pt"
    stop = 3 * SPE + 2
    record(path, range(stop), save=checkpoint, adam=True)
    record(path, range(stop, 5 * SPE), resume=checkpoint, step=stop, adam=True)
    run = open_run(path)
    starts = run.windows["start"].values
    interrupted = int(np.searchsorted(starts, stop, side="right")) - 1
    expected = [c != interrupted for c in range(run.n_windows)]
    assert is_known(run) == expected


def test_the_sum_is_dropped_with_a_gradient_that_no_step_was_taken_with(
    tmp_path: Path,
):
    training = Training(adam=True)
    with open_recorder(tmp_path / "run.zarr", training) as recorder:
        training.run(recorder, range(SPE))
        for _ in range(2):
            training.model(torch.ones(1, 40)).sum().backward()
            recorder.take_gradient()
        training.run(recorder, range(SPE, 2 * SPE + 1))
    run = open_run(tmp_path / "run.zarr")
    assert is_known(run)[-2:] == [False, True]
    assert all(is_known(run)[:-2])


def test_sgd_needs_no_sums(tmp_path: Path):
    record(tmp_path / "run.zarr", range(SPE))
    run = open_run(tmp_path / "run.zarr")
    assert run.spec.window_folds == 0
    assert run.spec.energies
    assert run.stored.window_sum(0) is None
    assert run.stored.block_energies(0) is not None


def test_a_state_with_wrong_sums_is_refused(tmp_path: Path):
    path, training = tmp_path / "run.zarr", Training(adam=True)
    with open_recorder(path, training) as recorder:
        training.run(recorder, range(SPE + 1))
        state = recorder.state_dict()
    state["window_sums"]["folds"] = torch.zeros(3)
    with pytest.raises(SchemaError, match="window_sums: expected None or sums"):
        open_recorder(path, training, resume=state)
