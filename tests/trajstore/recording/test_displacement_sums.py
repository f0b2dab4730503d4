"""What is stored of the displacements of a window."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.trajstore.recording.resumable import Training, record
from trajstore.format.arrays import DISPLACEMENT_CODES, DISPLACEMENT_SCALES
from trajstore.format.run_spec import SchemaError
from trajstore.reading.run import Run, open_run
from trajstore.recording.recorder import Recorder
from trajstore.sketch.displacement_sum import DisplacementSum
from trajstore.sketch.window_sum import LEAST_STEPS

LONG = 2 * LEAST_STEPS
OPTIONS: dict[str, Any] = {"steps_per_epoch": LONG, "sketch_bits": 512, "probes": 16}


def is_known(run: Run) -> list[bool]:
    windows = range(run.n_windows)
    return [run.stored.displacement_sum(c) is not None for c in windows]


def test_the_sum_is_that_of_the_displacements_of_the_window(tmp_path: Path):
    training, iterates = Training(adam=True), list[Any]()
    recorder = Recorder(
        tmp_path / "run.zarr", training.model, training.optimizer, **OPTIONS
    )
    layout = recorder._session.tracker._placement.layout

    def keep(*_: Any) -> None:
        named = training.model.named_parameters()
        iterates.append(layout.flatten({n: p.detach().numpy() for n, p in named}))

    with recorder:
        training.run(recorder, range(3 * LONG), keep)
        keep()
    run = open_run(tmp_path / "run.zarr")
    last = run.n_windows - 1
    anchor = np.float64(run.stored.anchors.decode(last, slice(0, layout.size)))
    *steps, end = (np.float64(x) - anchor for x in iterates[-LONG - 1 :])
    assert len(steps) == LONG
    total = DisplacementSum(
        sketch=run.stored.sketch, probes=run.stored.probes, window=last
    )
    middle = (LONG - 1) / 2
    expected = total.encode((np.sum(steps, 0) - middle * end).astype(np.float32))
    names = DISPLACEMENT_CODES, DISPLACEMENT_SCALES
    codes, scales = (np.asarray(run.stored.array(name)[last]) for name in names)
    np.testing.assert_allclose(scales, expected[1], rtol=1e-4)
    assert np.unpackbits(codes ^ expected[0]).mean() < 0.02


def test_short_windows_have_no_sums(tmp_path: Path):
    record(tmp_path / "run.zarr", range(2 * LONG), adam=True, **OPTIONS)
    run = open_run(tmp_path / "run.zarr")
    lengths = run.windows["stop"].values - run.windows["start"].values
    assert is_known(run) == (lengths >= LEAST_STEPS).tolist()
    codes = np.asarray(run.stored.array(DISPLACEMENT_CODES)[...])
    assert not codes[lengths < LEAST_STEPS].any()
    sums = [run.stored.window_sum(c) is not None for c in range(run.n_windows)]
    assert run.spec.window_folds == 0 or sums == is_known(run)


@pytest.mark.parametrize("bits", [512, 2048], ids=["folded", "packed"])
def test_a_resumed_window_has_the_same_sum(tmp_path: Path, bits: int):
    options = OPTIONS | {"sketch_bits": bits, "total_steps": 10 * LONG, "adam": True}
    whole, parts = tmp_path / "whole.zarr", tmp_path / "parts.zarr"
    stop, end = LONG + LONG // 2 + 1, 3 * LONG
    record(whole, range(end), **options)
    record(parts, range(stop), save=tmp_path / "state.pt", **options)
    record(parts, range(stop, end), resume=tmp_path / "state.pt", **options)
    runs = open_run(parts), open_run(whole)
    assert runs[0].spec.displacement_sum
    for name in (DISPLACEMENT_CODES, DISPLACEMENT_SCALES):
        found, expected = (np.asarray(run.stored.array(name)[...]) for run in runs)
        np.testing.assert_array_equal(found, expected)
    assert all(is_known(runs[0])[-2:])


def test_a_window_resumed_without_a_state_has_no_sum(tmp_path: Path):
    path, checkpoint = tmp_path / "run.zarr", tmp_path / "state.pt"
    stop, options = LONG + LONG // 2, OPTIONS | {"adam": True}
    record(path, range(stop), save=checkpoint, **options)
    record(path, range(stop, 3 * LONG), resume=checkpoint, step=stop, **options)
    assert is_known(open_run(path))[-2:] == [False, True]


def test_a_state_with_a_wrong_sum_is_refused(tmp_path: Path):
    path, training = tmp_path / "run.zarr", Training(adam=True)
    with Recorder(path, training.model, training.optimizer, **OPTIONS) as recorder:
        training.run(recorder, range(LONG + 1))
        state = recorder.state_dict()
    state["window_sums"]["displacements"] = torch.zeros(1, 3)
    with pytest.raises(SchemaError, match="window_sums: expected None or sums"):
        Recorder(path, training.model, training.optimizer, resume=state, **OPTIONS)
