"""Test that trackers receive what the store holds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import analyzers
import trajstore
from tests.trajstore.trackers.lists import ListSink, train
from trajstore.trackers import Reporter

QUANTITIES = {"grad_norm": "grad_sq", "update_norm": "update_sq"}


@pytest.mark.parametrize("flush_rows", [1, 5, 1000])
@pytest.mark.parametrize("every", [1, 3])
def test_values_are_those_of_the_store(tmp_path: Path, every: int, flush_rows: int):
    sink = ListSink()
    reporter = Reporter(to=sink, every=every)
    train(tmp_path / "run.zarr", report_to=reporter, flush_rows=flush_rows)
    run = trajstore.open_run(tmp_path / "run.zarr")
    steps = run.steps.compute()
    cosine = analyzers.zigzag(run).cosine.values
    by_layer = analyzers.zigzag(run, layers=True).cosine.transpose("step", "layer")
    names = [str(name) for name in steps["layer"].values]
    assert [step for step, _ in sink.received] == list(range(0, 12, every))
    for step, values in sink.received:
        row = steps.isel(step=step)
        expected: dict[str, Any] = {
            f"trajectory/{name}": float(row[name])
            for name in ("loss", "lr", "grad_norm", "update_norm", "param_norm")
        }
        ratio = np.sqrt(row.update_sq.astype(float) / row.param_sq.astype(float))
        for i, name in enumerate(names):
            for quantity, square in QUANTITIES.items():
                key = f"layer_{quantity}/{name}"
                expected[key] = float(row[square][i].astype(float)) ** 0.5
            expected[f"layer_update_ratio/{name}"] = float(ratio[i])
        expected["trajectory/update_ratio"] = float(
            row.update_norm.values / row.param_norm.values
        )
        if step > 0:
            expected["trajectory/adjacent_cosine"] = cosine[step]
            for i, name in enumerate(names):
                expected[f"layer_adjacent_cosine/{name}"] = by_layer.values[step, i]
        assert values.keys() == expected.keys()
        for name, value in expected.items():
            # The same float64 arithmetic on the same float32 values, in another order.
            assert values[name] == pytest.approx(value, rel=1e-12), name


def test_layers_are_chosen_by_name(tmp_path: Path):
    chosen = {}
    choices: list[Any] = [True, False, ["*.weight"], "2.*"]
    for i, layers in enumerate(choices):
        sink = ListSink()
        reporter = Reporter(to=sink, every=5, layers=layers)
        train(tmp_path / f"{i}.zarr", report_to=reporter)
        found = {
            name.partition("/")[2] for name in sink.received[1][1] if "layer" in name
        }
        chosen[i] = sorted(found)
    names = ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert chosen[0] == names
    assert chosen[1] == []
    assert chosen[2] == ["0.weight", "2.weight"]
    assert chosen[3] == ["2.bias", "2.weight"]


def test_recordings_without_a_basis_have_no_ratio(tmp_path: Path):
    sink = ListSink()
    train(tmp_path / "run.zarr", report_to=Reporter(to=sink, every=4), basis=0)
    assert not any("ratio" in name for _, values in sink.received for name in values)
    assert "layer_adjacent_cosine/2.bias" in sink.received[-1][1]


def test_settings_and_times_are_reported(tmp_path: Path):
    sink = ListSink()
    attrs = {"lr": 0.1, "data": {"name": "random"}}
    train(tmp_path / "run.zarr", report_to=Reporter(to=sink, every=1), attrs=attrs)
    [settings] = sink.seen_settings
    assert settings == {"store": str(tmp_path / "run.zarr"), **attrs}
    wall = trajstore.open_run(tmp_path / "run.zarr").steps["wall_time"].values
    np.testing.assert_allclose(np.diff(sink.times), np.diff(wall), atol=1e-5)
    assert sink.threads == {"trajstore-tracker"}
    assert sink.is_closed


def test_a_resumed_recording_continues_its_reports(tmp_path: Path):
    first, second = ListSink(), ListSink()
    reporter = Reporter(to=first, every=2)
    state = train(tmp_path / "run.zarr", n_steps=5, report_to=reporter)
    train(
        tmp_path / "run.zarr",
        n_steps=4,
        start=state,
        resume=True,
        step=5,
        report_to=Reporter(to=second, every=2),
    )
    assert [step for step, _ in first.received] == [0, 2, 4]
    assert [step for step, _ in second.received] == [6, 8]


def test_several_trackers_have_their_own_intervals(tmp_path: Path):
    one, two = ListSink(), ListSink()
    report_to = [Reporter(to=one, every=6, layers=False), Reporter(to=two, every=4)]
    train(tmp_path / "run.zarr", report_to=report_to)
    assert [step for step, _ in one.received] == [0, 6]
    assert [step for step, _ in two.received] == [0, 4, 8]
