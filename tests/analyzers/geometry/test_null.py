"""Test ``analyzers.geometry.null``."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

import analyzers
import trajstore


def walked(norms: Any) -> Any:
    """Return the parts of a run that the null model reads."""
    values = np.asarray(norms, float)
    steps = xr.Dataset({"update_norm": ("step", values)})
    attributes = {
        "n_steps": len(values),
        "steps": steps.assign_coords(step=np.arange(len(values))),
        "stored": SimpleNamespace(epochs=np.arange(len(values)) // 3),
        "location": "run.zarr",
    }
    # A run is recognised by its class.
    return type("Walked", (), attributes)()


def test_steps_of_one_length_have_the_closed_form():
    gamma = analyzers.random_walk_gamma(walked(np.full(20, 0.3)))
    np.testing.assert_allclose(gamma, 1 / np.sqrt(20 - np.arange(20)), rtol=1e-12)


def test_simulated_walk_in_many_dimensions_agrees():
    rng = np.random.default_rng(0)
    lengths, n_dims = rng.uniform(0.2, 2.0, 12), 200_000
    steps = rng.normal(size=(12, n_dims))
    steps *= (lengths / np.linalg.norm(steps, axis=1))[:, None]
    x = np.concatenate([np.zeros((1, n_dims)), np.cumsum(steps, axis=0)])
    from_end = x[:-1] - x[-1]
    cosine = -(steps * from_end).sum(1) / lengths / np.linalg.norm(from_end, axis=1)
    # A cosine of independent directions has a standard deviation of 1 / sqrt(n_dims) = 0.0022.
    np.testing.assert_allclose(
        analyzers.random_walk_gamma(walked(lengths)), cosine, atol=5 * 0.0022
    )


def test_walk_may_end_early():
    norms = [1.0, 2.0, 2.0, 5.0, 7.0]
    early = analyzers.random_walk_gamma(walked(norms), stop=3)
    np.testing.assert_allclose(early[:3], [1 / 3, 2 / np.sqrt(8), 1], rtol=1e-12)
    assert np.isnan(early[3:]).all()


def test_unknown_step_makes_earlier_steps_unknown():
    gamma = analyzers.random_walk_gamma(walked([1.0, np.nan, 3.0, 4.0]))
    assert np.isnan(gamma.values).tolist() == [True, True, False, False]
    np.testing.assert_allclose(gamma[2:], [3 / 5, 1], rtol=1e-12)


def test_run_that_stands_still_has_no_direction():
    gamma = analyzers.random_walk_gamma(walked([1.0, 0.0, 0.0]))
    assert gamma[0] == 1
    assert np.isnan(gamma[1:]).all()


@pytest.mark.parametrize("stop", [0, 4, -1])
def test_walk_cannot_end_outside_of_the_run(stop: int):
    with pytest.raises(ValueError, match=rf"between 1 and 3, .* run.zarr; got {stop}"):
        analyzers.random_walk_gamma(walked([1.0, 1.0, 1.0]), stop=stop)


def measured(reference: str) -> xr.Dataset:
    variables = {
        "gamma": ("step", np.full(9, 0.5)),
        "gamma_stderr": ("step", [0.1] * 9),
    }
    return xr.Dataset(variables, {"step": np.arange(9)}, attrs={"reference": reference})


@pytest.mark.parametrize(
    ("reference", "stop"), [("final", 9), ("epoch 2", 6), ("epoch 1", 3)]
)
def test_excess_is_over_the_walk_that_ends_at_the_reference(reference: str, stop: int):
    run = walked(np.ones(9))
    result = analyzers.excess_gamma(measured(reference), run)
    expected = 0.5 - 1 / np.sqrt(stop - np.arange(stop))
    np.testing.assert_allclose(result.excess[:stop], expected, rtol=1e-12)
    np.testing.assert_allclose(
        result.excess + result.gamma_null, 0.5 + 0 * result.excess
    )
    assert np.isnan(result.excess[stop:]).all()
    np.testing.assert_array_equal(result.excess_stderr, [0.1] * 9)


@pytest.mark.parametrize("reference", ["epoch 0", "snapshot warm", "given"])
def test_point_to_which_no_steps_lead_is_refused(reference: str):
    with pytest.raises(
        ValueError, match=f"relative to '{reference}', to which no steps"
    ):
        analyzers.excess_gamma(measured(reference), walked(np.ones(9)))


def test_run_is_measured_by_its_steps(exact_run: Path):
    run = trajstore.open_run(exact_run)
    norms = np.linalg.norm(_updates(run), axis=1)
    gamma = analyzers.random_walk_gamma(run)
    k = 17
    expected = norms[k] / np.sqrt((norms[k:] ** 2).sum())
    np.testing.assert_allclose(gamma[k], expected, rtol=1e-5)
    assert {"epoch", "iteration"} <= set(gamma.coords)


def _updates(run: trajstore.Run) -> np.ndarray[Any, Any]:
    """Return the differences of successive iterates of an exact run, (step, param)."""
    all_elements = slice(0, run.layout.size)
    displacements, windows = (
        run.stored.array("displacement")[:],
        run.stored.array("window")[:],
    )
    x = [
        run.stored.anchors.decode(int(windows[k]), all_elements).astype(float)
        + displacements[k]
        for k in range(run.n_steps)
    ]
    return np.diff(np.array([*x, run.stored.vector("final", all_elements)]), axis=0)


@pytest.mark.parametrize("direction", ["update", "gradient + 0.1 x"])
def test_other_directions_are_not_compared_with_a_walk(
    example_run: Path, direction: str
):
    run = trajstore.open_run(example_run)
    geometry = analyzers.path_geometry(run).assign_attrs(direction=direction)
    with pytest.raises(ValueError, match=f"got gamma of {re.escape(repr(direction))}"):
        analyzers.excess_gamma(geometry, run)


def test_layers_are_not_compared_with_a_walk(example_run: Path):
    run = trajstore.open_run(example_run)
    geometry = analyzers.path_geometry(run, layers=True)
    with pytest.raises(ValueError, match=r"the dimensions \('step', 'layer'\)"):
        analyzers.excess_gamma(geometry, run)


def test_excess_over_a_recorded_walk_has_the_error_of_both():
    geometry, null = measured("final"), measured("final") * 0.5
    null.attrs = geometry.attrs
    result = analyzers.excess_gamma(geometry, walked(np.ones(9)), null=null)
    np.testing.assert_allclose(result.excess, 0.25)
    np.testing.assert_allclose(result.gamma_null, 0.25)
    np.testing.assert_allclose(result.excess_stderr, np.hypot(0.1, 0.05))


@pytest.mark.parametrize("change", ["steps", "reference", "direction"])
def test_another_kind_of_null_is_refused(change: str):
    geometry, null = measured("final"), measured("final")
    if change == "steps":
        null = null.isel(step=slice(1))
    else:
        null = null.assign_attrs({change: "other"})
    with pytest.raises(ValueError, match=r"has the dimensions, target and direction"):
        analyzers.excess_gamma(geometry, walked(np.ones(9)), null=null)
