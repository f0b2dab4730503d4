"""Test ``analyzers.compare_over_seeds`` and the grouping of runs."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
import xarray as xr

import analyzers
from analyzers.comparison import grouping
from analyzers.comparison.arrays.seeds import over_runs, verdicts, welch
from tests.analyzers.geometry.seeded import Seeded
from tests.analyzers.laziness import fail_if_computed

pytest.importorskip("torch")


def test_differences_are_those_of_welch():
    rng = np.random.default_rng(0)
    for n_a, n_b in ((3, 2), (2, 2), (3, 3), (7, 4)):
        a, b = rng.normal(size=n_a), 3 * rng.normal(size=n_b) + 1
        ours = welch(*over_runs(a, 0 * a), *over_runs(b, 0 * b))
        test = scipy.stats.ttest_ind(a, b, equal_var=False)
        np.testing.assert_allclose(ours.dof, test.df)
        np.testing.assert_allclose(ours.value / ours.stderr, test.statistic)
        interval = test.confidence_interval(0.95)
        np.testing.assert_allclose([ours.low, ours.high], interval)


def test_means_over_runs():
    mean, stderr, n = over_runs(np.array([1.0, np.nan, 3.0]), np.array([0.1, 9, 0.1]))
    np.testing.assert_allclose([mean, stderr, n], [2.0, 1.0, 2])
    # Runs that agree by chance are not known better than each of them.
    mean, stderr, n = over_runs(np.array([2.0, 2.0]), np.array([0.3, 0.4]))
    np.testing.assert_allclose([mean, stderr, n], [2.0, 0.25, 2])
    mean, stderr, n = over_runs(np.array([5.0]), np.array([0.3]))
    np.testing.assert_allclose([mean, stderr, n], [5.0, 0.3, 1])
    assert np.isnan(over_runs(np.array([5.0]), np.array([np.nan]))[1])


def test_verdicts_say_on_which_side_the_interval_lies():
    low, high = np.array([0.1, -2, -1, np.nan]), np.array([3.0, -1, 1, np.nan])
    words = ["higher", "lower", "inconclusive", "unknown"]
    assert verdicts(low, high).tolist() == words


def fake(monkeypatch: pytest.MonkeyPatch, runs: dict[str, dict[str, Any]]) -> list[Any]:
    made = [SimpleNamespace(location=f"/r/{name}.zarr") for name in runs]
    settings = {f"/r/{name}.zarr": facts for name, facts in runs.items()}
    monkeypatch.setattr(grouping, "settings_of", lambda run: settings[run.location])
    return made


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["adamw0", "adamw1", "sgd0", "sgd1"], ["adamw", "sgd"]),
        (["adamw-10", "adamw-11", "sgd", "sgd-1"], ["adamw", "sgd"]),
        (["lr0.1-s0", "lr0.1-s1", "lr0.3-s0", "lr0.3-s1"], ["lr0.1", "lr0.3"]),
        (["seed0/a", "seed1/a", "seed0/b", "seed1/b"], ["a", "b"]),
        (["1", "2", "3", "4"], ["Adam", "SGD"]),
    ],
)
def test_runs_with_equal_settings_but_seeds_belong_together(
    monkeypatch: pytest.MonkeyPatch, names: list[str], expected: list[str]
):
    facts = [
        {"optimizer.class": f"torch.{c}", "training.seed": i, "recorder.seed": i}
        for i, c in enumerate(["Adam", "Adam", "SGD", "SGD"])
    ]
    runs = fake(monkeypatch, dict(zip(names, facts, strict=True)))
    found = grouping.configurations(runs)
    assert [c.runs for c in found] == [(0, 1), (2, 3)]
    assert [c.name for c in found] == expected


def test_settings_can_be_chosen(monkeypatch: pytest.MonkeyPatch):
    facts = {f"run{i}": {"lr": 0.1 * (i % 2), "note": f"text {i}"} for i in range(4)}
    runs = fake(monkeypatch, facts)
    assert len(grouping.configurations(runs)) == 4
    found = grouping.configurations(runs, by=["lr"])
    assert [(c.name, c.runs) for c in found] == [("0", (0, 2)), ("0.1", (1, 3))]
    with pytest.raises(KeyError, match=r"No setting .rate. .* they differ in lr, note"):
        grouping.configurations(runs, by=["rate"])


@pytest.fixture(scope="module")
def found(trainings: Sequence[Seeded]) -> xr.Dataset:
    first, second = trainings
    named = {"slow": first.runs[:3], "fast": second.runs[:2], "alone": first.runs[3:]}
    with dask.config.set(scheduler=fail_if_computed):
        lazy = analyzers.compare_over_seeds(named)
    return lazy.compute()


def test_means_and_verdicts_of_configurations(
    trainings: Sequence[Seeded], found: xr.Dataset
):
    middles = [
        [
            float(analyzers.mid_run(analyzers.epoch_means(geometry)).rsi)
            for geometry in (analyzers.path_geometry(run).compute() for run in runs)
        ]
        for runs in (trainings[0].runs[:3], trainings[1].runs[:2])
    ]
    np.testing.assert_allclose(
        found.rsi_mid_run[:2], [np.mean(values) for values in middles]
    )
    test = scipy.stats.ttest_ind(*middles[::-1], equal_var=False)
    low, high = test.confidence_interval(0.95)
    # The error is at least that of the estimates.
    assert found.rsi_difference_low[1] <= low + 1e-12
    assert found.rsi_difference_high[1] >= high - 1e-12
    assert found.rsi_difference_verdict.dtype == object
    assert found.rsi_difference_verdict.values[[0, 2]].tolist() == ["", "unknown"]
    assert np.isnan(found.rsi_difference_dof[2])
    assert (found.n_runs == [[3] * 4 + [0] * 2, [2] * 6, [1] * 4 + [0] * 2]).all()
    assert np.isnan(found.gamma.values[0, 4:]).all()
    assert found["runs"].values[1] == "second/0.zarr, second/1.zarr"
    assert found.rsi_difference[0] == found.rsi_difference_stderr[0] == 0


def test_runs_find_their_configurations(trainings: Sequence[Seeded]):
    runs = [run for training in trainings for run in training.runs[:2]]
    compared = analyzers.compare_over_seeds([run.location for run in runs])
    assert compared.configuration.values.tolist() == ["first", "second"]
    assert (compared.n_runs.max("epoch") == 2).all()


def test_configurations_are_drawn(found: xr.Dataset, tmp_path: Path):
    figure = analyzers.plots.compare(found)
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["slow", "fast", "alone"]
    plt.close(figure)
    found.to_zarr(tmp_path / "found.zarr", consolidated=False)
    again = xr.open_zarr(tmp_path / "found.zarr", consolidated=False)
    assert again.gamma_difference_verdict.values[2] == "unknown"


def test_impossible_requests_are_refused(example_run: Path):
    with pytest.raises(ValueError, match=r"configurations \['b'\] have no runs"):
        analyzers.compare_over_seeds({"a": [example_run], "b": []})
    with pytest.raises(ValueError, match="give one of both"):
        analyzers.compare_over_seeds({"a": [example_run]}, by=["lr"])
