"""Test ``analyzers.mid_run``."""

from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr

import analyzers
from analyzers.geometry.mid_run import median_of, middle_half
from tests.analyzers.laziness import fail_if_computed

QUANTITIES = ("gamma", "rsi", "eb", "lolr", "distance")


def means(values: list[float], stderr: float = 0.1) -> xr.Dataset:
    variables = {}
    for name in QUANTITIES:
        variables[name] = ("epoch", np.array(values))
        variables[f"{name}_stderr"] = ("epoch", np.full(len(values), stderr))
    return xr.Dataset(variables, {"epoch": np.arange(len(values))})


@pytest.mark.parametrize(
    ("n", "first", "stop"),
    [(1, 0, 1), (2, 0, 1), (3, 1, 2), (4, 1, 3), (8, 2, 6), (12, 3, 9)],
)
def test_the_middle_half_is_a_half(n: int, first: int, stop: int):
    assert middle_half(n) == slice(first, stop)


def test_the_end_of_a_schedule_changes_nothing():
    values = [9.0, 1.0, 2.0, 4.0, 3.0, 5.0, 1e3, 1e6]
    found = analyzers.mid_run(means(values))
    assert found.gamma == 3.5
    np.testing.assert_allclose(found.gamma_stderr, 0.1 / 2)
    assert found.rsi == 3.5
    np.testing.assert_allclose(found.rsi_stderr, np.sqrt(2) * 0.1 / 2)
    # One epoch within the middle half does not dominate the medians.
    values[5] = 1e4
    found = analyzers.mid_run(means(values))
    assert found.rsi == found.distance == 3.5
    assert found.gamma > 1e3


def test_the_median_has_the_error_of_the_epochs_in_the_middle():
    value = np.array([[3.0, np.nan, 1.0, 2.0], [4.0, 1.0, 2.0, 3.0], [np.nan] * 4])
    stderr = np.array([[0.3, 9.0, 0.1, 0.2], [0.4, 0.1, 0.2, 0.3], [1.0] * 4])
    median, error = median_of(value, stderr)
    np.testing.assert_array_equal(median, [2.0, 2.5, np.nan])
    np.testing.assert_allclose(error, [0.2, np.hypot(0.2, 0.3) / 2, np.nan])


def test_the_error_of_a_median_covers_equal_epochs():
    """Estimates of equal epochs scatter less than the error says, but not by far."""
    rng = np.random.default_rng(0)
    for n in (2, 3, 6, 7):
        median, error = median_of(rng.normal(size=(4000, n)), np.ones((4000, n)))
        assert 0.4 < median.std() / error.mean() < 1.05


def test_lazy_means_and_layers_have_lazy_summaries():
    layers = xr.concat([means([1.0, 2.0, 3.0, 4.0]), means([2.0] * 4)], "layer")
    with dask.config.set(scheduler=fail_if_computed):
        lazy = analyzers.mid_run(layers.chunk(epoch=1))
    xr.testing.assert_allclose(lazy.compute(), analyzers.mid_run(layers))
    np.testing.assert_array_equal(lazy.eb, [2.5, 2.0])


def test_epochs_of_damaged_chunks_do_not_count():
    damaged = means([7.0, 9.0, 1.0, 2.0, 9.0]).assign_coords(epoch=[-1, 0, 1, 2, 3])
    assert analyzers.mid_run(damaged).gamma == 1.5


def test_ranges_of_steps_are_summarised_too():
    ranges = means([9.0, 1.0, 2.0, 9.0]).rename(epoch="step")
    ranges = ranges.assign_coords(last_step=("step", [0, 1, 2, 3]))
    found = analyzers.mid_run(ranges)
    assert found.lolr == 1.5
    assert not found.coords


def test_the_excess_is_averaged():
    values = means([9.0, 1.0, 2.0, 4.0])[["gamma", "gamma_stderr"]]
    excess = values.rename({"gamma": "excess", "gamma_stderr": "excess_stderr"})
    found = analyzers.mid_run(excess)
    assert set(found) == {"excess", "excess_stderr"}
    assert found.excess == 1.5
    np.testing.assert_allclose(found.excess_stderr, 0.1 / np.sqrt(2))


def test_runs_without_epochs_have_no_middle_next_to_others():
    whole, single = means([1.0, 2.0, 3.0, 4.0]), means([9.0])
    both = xr.concat([whole, single], "run", join="outer")
    n_steps = np.where(np.isnan(both.gamma), 0, 10)
    found = analyzers.mid_run(both.assign(n_steps=(("run", "epoch"), n_steps)))
    np.testing.assert_equal(found.gamma.values, [2.5, np.nan])
    alone = xr.concat([single, single], "run").assign(
        n_steps=(("run", "epoch"), [[10]] * 2)
    )
    np.testing.assert_equal(analyzers.mid_run(alone).gamma.values, [9.0, 9.0])


def test_after_a_target_inside_the_run_no_epoch_counts():
    values = [9.0, 1.0, 2.0, 9.0, -5.0, -6.0, -7.0, -8.0]
    inside = means(values).assign_attrs(reference_epoch=4, reference_step=8)
    assert analyzers.mid_run(inside).gamma == 1.5
    ranges = inside.rename(epoch="step").assign_coords(step=2 * np.arange(8))
    ranges = ranges.assign_coords(last_step=("step", 2 * np.arange(8) + 1))
    assert analyzers.mid_run(ranges).gamma == 1.5
    # Of a selection behind the target, the middle half is summarised as ever.
    behind = inside.isel(epoch=slice(4, None))
    assert analyzers.mid_run(behind).gamma == -6.5


def test_results_know_a_target_inside_the_run(example_run: Path):
    inside = analyzers.path_geometry(example_run, reference=4)
    assert inside.attrs["reference_epoch"] == 4
    assert inside.attrs["reference_step"] == int((inside["epoch"] < 4).sum())
    found = analyzers.mid_run(analyzers.epoch_means(inside)).compute()
    expected = analyzers.epoch_means(inside).compute().gamma[1:3].mean()
    np.testing.assert_allclose(found.gamma, expected)
    for reference in ("final", 0):
        geometry = analyzers.path_geometry(example_run, reference=reference)
        assert "reference_epoch" not in geometry.attrs
