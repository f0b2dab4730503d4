"""Test ``analyzers.deep_linear.command``."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import analyzers
import trajstore
from tests.analyzers.stored_results import stored

pytest.importorskip("torch")

from train.protocols.record import record
from train.workloads.catalogue import settings_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Record a run of two layers in which half of the modes are learnt."""
    path = tmp_path_factory.mktemp("linear") / "run.zarr"
    training = replace(settings_of("deep-linear-2"), max_steps=60, lr=0.1)
    record(training, path, exact=True)
    return path


def rows(output: str) -> list[list[str]]:
    lines = [line.split() for line in output.splitlines()]
    [header] = [i for i, line in enumerate(lines) if line[:2] == ["mode", "strength"]]
    return lines[header + 1 : header + 5]


def test_modes_are_shown_stored_and_drawn(
    store: Path, traj_analyze: Callable[..., str]
):
    output = traj_analyze("linear-modes", store)
    modes = analyzers.linear_modes(trajstore.open_run(store))
    for i, row in enumerate(rows(output)):
        assert row[0] == str(i)
        numbers = [float(cell) for cell in row[1:5]]
        expected = [
            modes.strength[i],
            modes.modes[0, i],
            modes.modes[-1, i],
            modes.closed_form[-1, i],
        ]
        np.testing.assert_allclose(numbers, expected, atol=1e-4)
        error = float(abs(modes.error[:, i]).max())
        assert float(row[7]) == pytest.approx(error, abs=1e-4)
    assert rows(output)[0][5] == f"{float(modes.half_time[0]):.2f}"
    assert rows(output)[3][5] == "-"
    table = output.partition("Figure:")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert "2 layers, 60 steps, time 5.9 (loss: half-sum)" in output
    figure = store.with_suffix(".figures") / "linear-modes.png"
    assert figure.stat().st_size > 10_000
    np.testing.assert_array_equal(stored(store, "linear-modes").modes, modes.modes)


def test_options_are_passed_on(store: Path, traj_analyze: Callable[..., str]):
    output = traj_analyze("linear-modes", store, "--start", "20", "--loss", "sum")
    assert "time 11.8 (loss: sum)" in output
    modes = analyzers.linear_modes(trajstore.open_run(store), start=20, loss="sum")
    assert float(rows(output)[0][2]) == pytest.approx(
        float(modes.modes[20, 0]), abs=1e-4
    )
    chosen = ("--layers", "0.weight", "1.weight")
    assert "2 layers" in traj_analyze("linear-modes", store, *chosen)


def test_sketched_runs_are_refused_in_a_sentence(
    example_run: Path, refused: Callable[..., str]
):
    message = refused("linear-modes", example_run)
    assert "holds sketches, and the modes need whole iterates" in message
