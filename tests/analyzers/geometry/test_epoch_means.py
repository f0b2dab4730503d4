"""Test ``analyzers.epoch_means``."""

import time
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

import analyzers
import trajstore
from tests.analyzers.laziness import fail_if_computed

POWER = {"gamma": -1, "rsi": -2, "eb": -1, "lolr": 0, "distance": 1}
EPOCHS = [0, 0, 0, 2, 2, 2, 2, 5]


def synthetic(*, layers: bool = False, seed: int = 0) -> xr.Dataset:
    """Return eight steps in epochs of 3, 4 and 1, with errors as from `path_geometry`."""
    rng = np.random.default_rng(seed)
    dims = ("step", "layer") if layers else ("step",)
    shape = (len(EPOCHS), 3)[: len(dims)]
    relative = rng.uniform(0.01, 0.1, shape)
    variables: dict[str, Any] = {}
    for name, power in POWER.items():
        value = rng.normal(size=shape) if power < 1 else rng.uniform(1, 2, shape)
        own = rng.uniform(0.1, 1, shape) if name in {"gamma", "rsi", "lolr"} else 0
        attributes = {"long_name": name, "units": "1"}
        variables[name] = (dims, value, attributes)
        shared = power * value * relative
        variables[f"{name}_stderr"] = (dims, np.hypot(own, shared))
        variables[f"{name}_from_distance"] = (dims, shared)
        variables[f"{name}_covariance"] = (dims, rng.uniform(0, 1, shape))
    coordinates: dict[str, Any] = {"epoch": ("step", EPOCHS)}
    if layers:
        coordinates["layer"] = ["a", "b", "c"]
    return xr.Dataset(variables, coordinates, {"reference": "final"})


def slow_stderr(geometry: xr.Dataset, name: str, steps: list[int]) -> float:
    """Evaluate the formula for parts of epochs in the docstring of `epoch_means`."""
    own_variance, shared, n = 0.0, 0.0, 0
    for k in steps:
        step = geometry.isel(step=k)
        value, stderr = float(step[name]), float(step[f"{name}_stderr"])
        if np.isnan(value):
            continue
        from_distance = float(step[f"{name}_from_distance"])
        own_variance += max(stderr**2 - from_distance**2, 0)
        shared += from_distance
        n += 1
    return float(np.sqrt(own_variance / n**2 + (shared / n) ** 2))


@pytest.mark.parametrize("name", POWER)
@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
def test_means_and_extremes_are_those_of_the_steps(name: str, layers: bool):
    geometry = synthetic(layers=layers)
    means = analyzers.epoch_means(geometry)
    assert means.epoch.values.tolist() == [0, 2, 5]
    for epoch in (0, 2, 5):
        steps = geometry[name].values[np.array(EPOCHS) == epoch]
        result = means.sel(epoch=epoch)
        np.testing.assert_allclose(result[name], steps.mean(0), rtol=1e-14)
        np.testing.assert_array_equal(result[f"{name}_min"], steps.min(0))
        np.testing.assert_array_equal(result[f"{name}_max"], steps.max(0))
        np.testing.assert_array_equal(result.n_steps, len(steps))


@pytest.mark.parametrize("name", POWER)
def test_standard_error_follows_the_formula(name: str):
    geometry = synthetic()
    geometry["gamma"][4] = np.nan
    geometry["gamma_stderr"][4] = np.nan
    means = analyzers.epoch_means(geometry)
    for epoch in (0, 2, 5):
        steps = [k for k, e in enumerate(EPOCHS) if e == epoch]
        np.testing.assert_allclose(
            means[f"{name}_stderr"].sel(epoch=epoch),
            slow_stderr(geometry, name, steps),
            rtol=1e-12,
            atol=1e-12,
        )


@pytest.mark.parametrize("name", POWER)
def test_standard_error_of_a_layer_depends_on_that_layer_only(name: str):
    geometry = synthetic(layers=True)
    means = analyzers.epoch_means(geometry)
    for layer in "abc":
        alone = analyzers.epoch_means(geometry.sel(layer=layer))
        xr.testing.assert_allclose(
            means[f"{name}_stderr"].sel(layer=layer), alone[f"{name}_stderr"]
        )


def test_independent_errors_fall_with_the_root_of_the_number_of_steps():
    geometry = synthetic()
    geometry["gamma_from_distance"][:] = 0
    geometry["gamma_stderr"][:] = 0.2
    means = analyzers.epoch_means(geometry)
    np.testing.assert_allclose(means.gamma_stderr, 0.2 / np.sqrt([3, 4, 1]), rtol=1e-12)


def test_shared_errors_do_not_fall():
    geometry = synthetic()
    geometry["distance"][:] = 2
    geometry["distance_stderr"][:] = 0.1
    geometry["distance_from_distance"][:] = 0.1
    means = analyzers.epoch_means(geometry)
    np.testing.assert_allclose(means.distance_stderr, 0.1, rtol=1e-12)


def test_mean_of_one_step_has_the_error_of_the_step():
    geometry = synthetic()
    means = analyzers.epoch_means(geometry)
    for name in POWER:
        np.testing.assert_allclose(
            means[f"{name}_stderr"].sel(epoch=5),
            abs(geometry[f"{name}_stderr"][-1]),
            rtol=1e-12,
        )


def whole_run(**options: Any) -> xr.Dataset:
    """Return `synthetic` as if these were all steps of a run."""
    geometry = synthetic(**options).assign_coords(step=np.arange(len(EPOCHS)))
    return geometry.assign_attrs(n_steps=len(EPOCHS))


@pytest.mark.parametrize("name", POWER)
def test_covariances_of_whole_epochs_add_up(name: str):
    geometry = whole_run()
    means = analyzers.epoch_means(geometry)
    for epoch in (0, 2, 5):
        own = geometry[f"{name}_covariance"].values[np.array(EPOCHS) == epoch]
        expected = np.sqrt(own.sum()) / len(own)
        found = means[f"{name}_stderr"].sel(epoch=epoch)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_covariances_do_not_describe_parts_of_epochs():
    """The first epoch is cut by the selection; the second one is whole."""
    geometry = whole_run()
    apart = analyzers.epoch_means(synthetic().isel(step=slice(1, None)))
    means = analyzers.epoch_means(geometry.isel(step=slice(1, None)))
    together = analyzers.epoch_means(geometry)
    for name in POWER:
        stderr = means[f"{name}_stderr"]
        assert float(stderr[0]) == float(apart[f"{name}_stderr"][0])
        assert float(stderr[1]) == float(together[f"{name}_stderr"][1])


def test_steps_with_an_imprecise_distance_are_left_out_and_counted():
    """Where the distance has an error of 40 %, 1 / distance is far from first order."""
    geometry = synthetic()
    geometry["distance_stderr"][1] = 0.4 * geometry["distance"][1]
    means = analyzers.epoch_means(geometry)
    assert means.n_imprecise.values.tolist() == [1, 0, 0]
    assert means.n_missing.values.tolist() == [0, 0, 0]
    for name in ("gamma", "rsi", "eb"):
        np.testing.assert_allclose(
            means[name][0], geometry[name][[0, 2]].mean(), rtol=1e-14
        )
    for name in ("lolr", "distance"):
        np.testing.assert_allclose(
            means[name][0], geometry[name][:3].mean(), rtol=1e-14
        )


def test_errors_contain_what_the_steps_left_out_may_change():
    geometry = synthetic()
    before = analyzers.epoch_means(geometry)
    geometry["distance_stderr"][1] = 0.4 * geometry["distance"][1]
    means, kept = analyzers.epoch_means(geometry), geometry.isel(step=[0, 2])
    for name in ("gamma", "rsi", "eb"):
        mean, n = kept[name].mean(), kept.sizes["step"]
        own = kept[f"{name}_stderr"] ** 2 - kept[f"{name}_from_distance"] ** 2
        shared = kept[f"{name}_from_distance"].sum() / n
        change = abs(kept[name] - mean).max() / 3
        expected = np.sqrt(own.sum() / n**2 + shared**2 + change**2)
        np.testing.assert_allclose(means[f"{name}_stderr"][0], expected, rtol=1e-12)
    for name in ("lolr", "distance"):
        np.testing.assert_array_equal(
            means[f"{name}_stderr"][1:], before[f"{name}_stderr"][1:]
        )
    geometry["distance_stderr"][2] = 0.4 * geometry["distance"][2]
    means = analyzers.epoch_means(geometry)
    assert np.isnan([means.gamma[0], means.rsi[0], means.eb[0]]).all()
    assert means.n_imprecise[0] == 2
    assert np.isfinite(means.gamma_stderr[0])
    assert np.isfinite(means.distance[0])


def test_steps_without_a_value_are_counted_and_left_out():
    geometry = synthetic()
    bad = [1, 3, 4, 7]
    for name in ("gamma", "rsi", "eb", "lolr"):
        for suffix in ("", "_stderr", "_from_distance", "_covariance"):
            geometry[f"{name}{suffix}"][bad] = np.nan
    means = analyzers.epoch_means(geometry)
    assert means.n_missing.values.tolist() == [1, 2, 1]
    assert means.n_steps.values.tolist() == [2, 2, 0]
    np.testing.assert_allclose(
        means.gamma[:2],
        [geometry.gamma[[0, 2]].mean(), geometry.gamma[[5, 6]].mean()],
        rtol=1e-14,
    )
    # All steps of epoch 5 are NaN.
    for name in ("gamma", "gamma_stderr", "gamma_min", "gamma_max"):
        assert np.isnan(means[name][2])
        assert np.isfinite(means[name][:2]).all()


@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
def test_lazy_means_equal_eager_means(layers: bool):
    geometry = synthetic(layers=layers)
    with dask.config.set(scheduler=fail_if_computed):
        chunked = geometry.chunk(step=3).assign_coords(epoch=geometry.epoch)
        lazy = analyzers.epoch_means(chunked)
        assert all(v.chunks is not None for v in lazy.data_vars.values())
    xr.testing.assert_allclose(lazy.compute(), analyzers.epoch_means(geometry))


def test_chunks_layers_and_the_order_of_steps_do_not_matter():
    """Epochs that chunks cut, in any order, with missing values, equal a slow reference."""
    geometry, rng = whole_run(layers=True), np.random.default_rng(2)
    for name in POWER:
        geometry[name].values[rng.uniform(size=(8, 3)) < 0.3] = np.nan
    shuffled = geometry.isel(step=rng.permutation(8))
    expected = analyzers.epoch_means(geometry)
    for chunks in ({"step": 1}, {"step": 3, "layer": 2}, {"step": (7, 1)}):
        for given in (geometry, shuffled):
            means = analyzers.epoch_means(given.chunk(chunks))
            xr.testing.assert_allclose(means.compute(), expected, rtol=1e-12)
    for name in ("lolr", "distance"):
        groups = geometry[name].groupby("epoch")
        xr.testing.assert_allclose(expected[name], groups.mean(), rtol=1e-12)
        xr.testing.assert_allclose(expected[f"{name}_max"], groups.max())
        shared = geometry[f"{name}_from_distance"].where(geometry[name].notnull())
        own = (geometry[f"{name}_stderr"] ** 2 - shared**2).clip(min=0)
        n = groups.count()
        variance = own.groupby("epoch").sum() / n**2
        variance += shared.groupby("epoch").mean() ** 2
        apart = analyzers.epoch_means(
            geometry.assign_attrs(n_steps=99).drop_vars("step")
        )
        xr.testing.assert_allclose(
            apart[f"{name}_stderr"], variance.where(n > 0) ** 0.5, rtol=1e-12
        )


def test_many_lazy_epochs_take_little_time():
    """Grouping every variable by itself took twenty seconds."""
    one = synthetic()
    many = xr.concat([one.drop_vars("epoch")] * 500, "step", combine_attrs="override")
    epochs = ("step", np.repeat(np.arange(200), 20))
    many = many.assign_coords(epoch=epochs).chunk(step=128)
    begin = time.process_time()
    analyzers.epoch_means(many).compute()
    assert time.process_time() - begin < 4


def test_labels_of_epochs_may_be_lazy(tmp_path: Path):
    """Stored results have lazy labels."""
    geometry = synthetic()
    geometry.to_zarr(tmp_path / "geometry.zarr", consolidated=False)
    stored = xr.open_zarr(tmp_path / "geometry.zarr", consolidated=False)
    xr.testing.assert_allclose(
        analyzers.epoch_means(stored).compute(), analyzers.epoch_means(geometry)
    )


def test_attributes_carry_over():
    means = analyzers.epoch_means(synthetic())
    assert means.attrs == {"reference": "final"}
    for name in POWER:
        for variable in (name, f"{name}_min", f"{name}_max"):
            assert means[variable].attrs == {"long_name": name, "units": "1"}
        error = means[f"{name}_stderr"].attrs
        assert error["long_name"] == f"standard error of the mean of {name}"


def test_dataset_without_the_quantities_is_refused():
    with pytest.raises(
        KeyError,
        match=r"No variables \['gamma', 'eb'\].*has \['gamma_stderr', .*result of analyzers\.path_geometry",
    ):
        analyzers.epoch_means(synthetic().drop_vars(["gamma", "eb"]))


def test_dataset_without_standard_errors_is_refused():
    with pytest.raises(KeyError, match="gamma_stderr"):
        analyzers.epoch_means(synthetic().drop_vars("gamma_stderr"))


@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
def test_means_of_a_run_are_those_of_its_groups(example_run: Path, layers: bool):
    geometry = analyzers.path_geometry(
        trajstore.open_run(example_run), layers=layers
    ).compute()
    means = analyzers.epoch_means(geometry)
    assert means.sizes["epoch"] == 5
    np.testing.assert_array_equal(means.n_steps, 12)
    for name in POWER:
        xr.testing.assert_allclose(
            means[name], geometry[name].groupby("epoch").mean("step")
        )
    # The sums of windows are known, so errors of steps nearly cancel in means.
    independent = (geometry.gamma_stderr**2).groupby("epoch").sum("step") ** 0.5 / 12
    assert (means.gamma_stderr > 0).all()
    if not layers:
        assert (means.gamma_stderr < independent)[1:].all()


@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
def test_a_mean_gamma_whose_error_is_above_1_is_unknown(layers: bool):
    """As in a layer whose gradient is rounding: its steps are estimates of +-400."""
    geometry = synthetic(layers=layers)
    noise = geometry["gamma_stderr"].values
    noise[4] = 400.0
    means = analyzers.epoch_means(geometry)
    first = means.isel(layer=0) if layers else means
    assert np.isnan(first.gamma.sel(epoch=2)).item()
    assert first.gamma_stderr.sel(epoch=2) > 50
    assert np.isfinite(first.gamma.sel(epoch=[0, 5])).all()
    assert first.n_imprecise.sel(epoch=2) == first.n_steps.sel(epoch=2) == 4
    assert first.n_imprecise.sel(epoch=0) == 0
    # The other quantities are no cosines; their errors say what they are worth.
    assert np.isfinite(first.rsi.sel(epoch=2)).item()
    middle = analyzers.mid_run(first.sel(epoch=[2]))
    assert np.isnan(middle.gamma)


def regular(n_epochs: int = 4, length: int = 2) -> xr.Dataset:
    """Return a whole run with epochs of the same length."""
    n = n_epochs * length
    return (
        synthetic()
        .isel(step=slice(n))
        .assign_coords(
            step=np.arange(n),
            epoch=("step", np.repeat(np.arange(n_epochs), length)),
            iteration=("step", np.tile(np.arange(length), n_epochs)),
        )
    )


@pytest.mark.parametrize("kept", [[1], [1, 3], [0, 3]])
def test_selected_epochs_keep_their_errors(kept: list[int]):
    whole = regular().assign_attrs(n_steps=8, epoch_steps=2)
    means = analyzers.epoch_means(whole).sel(epoch=kept)
    selected = whole.isel(step=np.isin(whole["epoch"], kept))
    xr.testing.assert_identical(analyzers.epoch_means(selected), means)
    # Without the length of epochs nothing says that the first one is whole, unless both ends
    # of it are seen.
    cut = analyzers.epoch_means(whole.isel(step=[3, 4, 5]))
    assert cut.gamma_stderr[0] != analyzers.epoch_means(whole).gamma_stderr[1]
    assert cut.gamma_stderr[1] == analyzers.epoch_means(whole).gamma_stderr[2]


def test_the_last_epoch_keeps_its_error_however_short():
    whole = regular().isel(step=slice(7)).assign_attrs(n_steps=7)
    last = analyzers.epoch_means(whole.isel(step=slice(6, None)))
    expected = analyzers.epoch_means(whole).sel(epoch=[3])
    xr.testing.assert_identical(last, expected)


def test_results_know_the_length_of_their_epochs(example_run: Path):
    geometry = analyzers.path_geometry(example_run)
    lengths = np.bincount(geometry["epoch"].values)
    assert geometry.attrs["epoch_steps"] == lengths[0] == lengths[-1]
    one = geometry.sel(epoch=[2])
    alone, means = analyzers.epoch_means(one), analyzers.epoch_means(geometry)
    xr.testing.assert_allclose(alone.compute(), means.sel(epoch=[2]).compute(), rtol=0)


@pytest.mark.parametrize("suffix", ["stderr", "covariance", "from_distance"])
@pytest.mark.parametrize("chunks", [None, 2], ids=["eager", "lazy"])
def test_a_step_without_an_error_leaves_that_of_its_mean_unknown(
    suffix: str, chunks: int | None
):
    geometry = synthetic()
    geometry["epoch"] = "step", np.array([0, 0, 0, 1, 1, 1, 1, 2])
    geometry = geometry.assign_coords(step=np.arange(8))
    if suffix != "from_distance":
        geometry.attrs["n_steps"] = 8  # whole epochs
    geometry[f"eb_{suffix}"][4] = np.nan
    if chunks:
        geometry = geometry.chunk(step=chunks)
    means = analyzers.epoch_means(geometry).compute()
    assert np.isnan(means["eb_stderr"].values).tolist() == [False, True, False]
    assert np.isfinite(means["eb"]).all()
    assert means["eb_n_steps"].values.tolist() == [3, 4, 1]
    assert np.isfinite(means["distance_stderr"]).all()
    assert np.isnan(analyzers.mid_run(means)["eb_stderr"])


def test_every_quantity_counts_its_own_steps():
    geometry = synthetic()
    geometry["gamma"][4:6] = np.nan
    means = analyzers.epoch_means(geometry)
    assert means["n_missing"].values.tolist() == [0, 2, 0]
    assert means["gamma_n_steps"].values.tolist() == [3, 2, 1]
    assert means["distance_n_steps"].values.tolist() == [3, 4, 1]
