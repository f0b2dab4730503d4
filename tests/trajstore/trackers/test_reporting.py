"""Test that trackers change neither training nor recording, whatever they do."""

import builtins
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import trajstore
from tests.trajstore.trackers.lists import ListSink, train
from trajstore.format.run_spec import RunSpec
from trajstore.trackers import Reporter, open_sink
from trajstore.trackers.reports import MAX_WAITING, Reports
from trajstore.trackers.rows import PRODUCTS, Rows


def values_of(path: Path) -> Mapping[str, Any]:
    steps = trajstore.open_run(path).steps.drop_vars("wall_time").compute()
    return {str(name): steps[name].values for name in steps}


def test_training_and_recording_are_the_same_with_trackers(tmp_path: Path):
    plain = train(tmp_path / "plain.zarr")
    state = torch.get_rng_state()
    with_trackers = train(
        tmp_path / "reported.zarr",
        report_to=[Reporter(to=ListSink(), every=1) for _ in range(3)],
        flush_rows=2,
    )
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in plain.items():
        assert torch.equal(tensor, with_trackers[name])
    expected, found = (
        values_of(tmp_path / "plain.zarr"),
        values_of(tmp_path / "reported.zarr"),
    )
    for name, values in expected.items():
        np.testing.assert_array_equal(values, found[name])


@pytest.mark.parametrize("method", ["settings", "scalars", "close"])
def test_an_error_of_a_tracker_is_one_warning(tmp_path: Path, method: str):
    bad, good = ListSink(), ListSink()
    bad.fails_at = method
    reporters = [Reporter(to=sink, every=1) for sink in (bad, good)]
    with pytest.warns(UserWarning, match="Nothing more is reported") as caught:
        train(
            tmp_path / "run.zarr", report_to=reporters, flush_rows=2, on_error="raise"
        )
    [warning] = caught
    assert f"ListSink: ConnectionError('no answer to {method}')" in str(warning.message)
    assert warning.filename.endswith("lists.py")
    assert len(good.received) == 12
    run = trajstore.open_run(tmp_path / "run.zarr")
    assert run.status == "complete"
    assert run.n_steps == 12


def test_a_tracker_that_exits_ends_only_its_reports(tmp_path: Path):
    class Exits(ListSink):
        def scalars(
            self, step: int, values: Mapping[str, float], *, time: float
        ) -> None:
            raise SystemExit(1)

    with pytest.warns(UserWarning, match=r"Exits: SystemExit\(1\)"):
        train(tmp_path / "run.zarr", report_to=Exits())
    assert trajstore.open_run(tmp_path / "run.zarr").status == "complete"


SPEC = RunSpec.from_json(
    {
        "names": ["w"],
        "shapes": [[2]],
        "seed": 0,
        "sketch_bits": 64,
        "basis": 1,
        "probes": 8,
        "steps_per_epoch": 4,
        "reference_every": None,
        "total_steps": None,
        "exact": False,
        "samples": 0,
    }
)


def rows(first: int, n: int = 1) -> Rows:
    products = {name: np.ones((n, 1), np.float32) for name in PRODUCTS}
    return Rows(first, products, [{"loss": 1.0, "wall_time": 0.0}] * n)


def test_a_slow_tracker_delays_nothing_and_says_so():
    sink = ListSink()
    sink.gate = threading.Event()
    reports = Reports([Reporter(to=sink, every=1)], SPEC, {}, close_seconds=5)
    for step in range(MAX_WAITING + 20):
        reports.send(rows(step))
    assert "too slow" in (reports.message() or "")
    assert reports.message() is None
    sink.gate.set()
    reports.close()
    assert reports.message() is None
    steps = [step for step, _ in sink.received]
    assert MAX_WAITING <= len(steps) < MAX_WAITING + 20
    assert steps == sorted(steps)
    assert sink.is_closed


def test_the_end_waits_for_a_tracker_only_so_long():
    sink = ListSink()
    sink.gate = threading.Event()
    reports = Reports([Reporter(to=sink, every=1)], SPEC, {}, close_seconds=0.05)
    reports.send(rows(0))
    reports.close()
    assert "did not take the last steps in time" in (reports.message() or "")
    sink.gate.set()


def test_after_a_gap_the_previous_gradient_is_unknown():
    sink = ListSink()
    reports = Reports([Reporter(to=sink, every=1)], SPEC, {})
    for first in (0, 1, 5):
        reports.send(rows(first))
    reports.close()
    known = ["trajectory/adjacent_cosine" in values for _, values in sink.received]
    assert known == [False, True, False]


@pytest.mark.parametrize("address", ["", "tensorbord:x", "tensorboard", "tensorboard:"])
def test_an_unknown_tracker_is_refused_before_training(tmp_path: Path, address: str):
    with pytest.raises(
        ValueError, match="Expected a tracker such as tensorboard:FOLDER"
    ):
        train(tmp_path / "run.zarr", report_to=address)
    assert not (tmp_path / "run.zarr").exists()


def test_other_objects_are_refused(tmp_path: Path):
    with pytest.raises(TypeError, match=r"methods of trajstore\.trackers\.Sink, got 3"):
        train(tmp_path / "run.zarr", report_to=[3])
    with pytest.raises(ValueError, match="`every` must be at least 1, got 0"):
        Reporter(to="wandb", every=0)


@pytest.fixture
def no_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let imports of wandb fail, as in an environment without it."""
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "wandb":
            raise ModuleNotFoundError("No module named 'wandb'", name="wandb")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(
        __import__("sys").modules, "trajstore.trackers.wandb", raising=False
    )


@pytest.mark.usefixtures("no_wandb")
def test_a_missing_package_is_named_with_its_extra(tmp_path: Path):
    with pytest.raises(ModuleNotFoundError, match=r'pip install "trajstore\[wandb\]"'):
        open_sink("wandb:project")
    with pytest.raises(ModuleNotFoundError, match="not installed"):
        train(tmp_path / "run.zarr", report_to="wandb:project")
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.usefixtures("no_wandb")
def test_a_missing_package_ends_no_training_run_if_errors_only_warn(tmp_path: Path):
    sink = ListSink()
    to = ["wandb:project", Reporter(to=sink, every=1)]
    with pytest.warns(
        UserWarning, match=r"Nothing is sent to 'wandb:project'.*\n.*trajstore\[wandb\]"
    ):
        train(tmp_path / "run.zarr", report_to=to, on_error="warn")
    assert len(sink.received) == 12
    assert trajstore.open_run(tmp_path / "run.zarr").n_steps == 12


def test_no_thread_and_no_import_without_trackers(tmp_path: Path):
    before = threading.active_count()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path / "run.zarr", n_steps=2)
    assert threading.active_count() == before
