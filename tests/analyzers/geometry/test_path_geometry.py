"""Test ``analyzers.path_geometry`` against the exact two-run protocol."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

import analyzers
import trajstore
from tests.analyzers.geometry.descent import Train, by_hand, recorded, z_scores
from tests.analyzers.laziness import fail_if_computed
from trajstore.reading.run import Run
from trajstore.sketch import sketch

pytest.importorskip("torch")

QUANTITIES = ("gamma", "rsi", "eb", "lolr", "distance")


# Results from one recorded training, compared with the exact protocol


@pytest.mark.parametrize("name", ["gamma", "rsi", "lolr"])
def test_errors_are_as_large_as_the_standard_errors_say(
    geometry: xr.Dataset, truth: xr.Dataset, name: str
):
    z = z_scores(geometry, truth, name)
    # With 60 steps the standard deviation of z has a standard error of 0.09; allow three.
    assert 0.72 < float(z.std()) < 1.28
    # One in 150 000 normal numbers lies beyond 4.5.
    assert float(abs(z).max()) < 4.5


@pytest.mark.parametrize("name", ["gamma", "rsi", "lolr"])
def test_estimates_are_unbiased(geometry: xr.Dataset, truth: xr.Dataset, name: str):
    error = (geometry[name] - truth[name]).mean()
    stderr = np.sqrt((geometry[f"{name}_stderr"] ** 2).sum()) / geometry.sizes["step"]
    assert abs(float(error)) < 3.5 * float(stderr)


@pytest.mark.parametrize("name", ["distance", "eb"])
def test_distances_are_within_a_few_percent(
    geometry: xr.Dataset, truth: xr.Dataset, name: str
):
    # With 256 probes instead of 1024, errors are twice the usual 1 % in mid-run and 4 %
    # next to x*.
    np.testing.assert_allclose(geometry[name], truth[name], rtol=0.08)
    relative = abs(geometry[name] / truth[name] - 1)
    assert float(relative.median()) < 0.02


@pytest.mark.parametrize("reference", ["final", 2, 3, "middle"])
def test_errors_of_distances_are_as_large_as_the_standard_errors_say(
    sketched: Run, exact: Run, reference: Any
):
    result = analyzers.path_geometry(sketched, reference=reference).compute()
    expected = analyzers.path_geometry(exact, reference=reference).compute()
    error = result.distance - expected.distance
    # Rounding adds to the error: near x* the distance is a difference of large numbers.
    allowed = 5 * result.distance_stderr + 1e-5 * float(expected.distance.max())
    away = expected.distance > 1e-3
    assert int(away.sum()) >= 58
    assert (abs(error) < allowed).where(away, True).all()


def test_distance_is_exact_where_windows_begin_at_an_iterate(
    geometry: xr.Dataset, truth: xr.Dataset
):
    """At step 0 the anchor is the iterate itself."""
    assert float(geometry.distance_stderr[0]) < 1e-6
    # float32 numbers of order 1.
    np.testing.assert_allclose(geometry.distance[0], truth.distance[0], rtol=1e-6)


def test_layers_add_up_to_the_whole(geometry: xr.Dataset, by_layer: xr.Dataset):
    """<g, x - x*> of a layer is loLR |g|^2, with |g| = EB times the distance."""
    numerator = by_layer.lolr * (by_layer.eb * by_layer.distance) ** 2
    whole = geometry.lolr * (geometry.eb * geometry.distance) ** 2
    # Both are float32 sums of a few thousand terms, in different orders. Where the sums of
    # windows are used, each layer is corrected by its own sum.
    squares = (geometry.eb * geometry.distance) ** 2
    error = 5 * geometry.lolr_stderr * squares * geometry.uses_window_sum
    allowed = 1e-4 * abs(whole) + 1e-6 + error
    assert (abs(numerator.sum("layer") - whole) < allowed).all()
    # Errors from probes differ between the layers and the whole.
    together = np.sqrt((by_layer.distance**2).sum("layer"))
    np.testing.assert_allclose(together, geometry.distance, rtol=0.05)


def test_layers_of_fewer_elements_than_the_basis_are_exact(
    example_run: Path, truth_by_layer: xr.Dataset
):
    """Three directions explain all of a vector of three numbers."""
    run = trajstore.open_run(example_run)
    by_layer = analyzers.path_geometry(run, layers=True)
    # In the sixth window and later, no direction is short. The tolerance is single
    # precision times coefficients of up to 20.
    late = slice(24, None)
    np.testing.assert_allclose(
        by_layer.gamma.sel(layer="2.bias")[late],
        truth_by_layer.gamma.sel(layer="2.bias")[late],
        atol=1e-4,
    )


@pytest.mark.parametrize("layer", ["0.weight", "0.bias", "2.weight"])
def test_errors_of_layers_are_of_the_order_of_their_standard_errors(
    by_layer: xr.Dataset, truth_by_layer: xr.Dataset, layer: str
):
    z = z_scores(by_layer, truth_by_layer, "gamma").sel(layer=layer)
    # These small layers share a few buckets of the fold because of their padding, while the
    # standard error assumes that all buckets are equal.
    assert 0.7 < float(z.std()) < 2.5
    assert abs(float(z.mean())) < 3.5 * float(z.std()) / np.sqrt(z.size)


@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
def test_weight_decay_agrees_with_whole_vectors(
    example_run: Path, exact: Run, layers: bool
):
    run = trajstore.open_run(example_run)
    options: dict[str, Any] = {"weight_decay": 0.05, "layers": layers}
    result = analyzers.path_geometry(run, **options).compute()
    expected = analyzers.path_geometry(exact, **options).compute()
    without = analyzers.path_geometry(exact, layers=layers).compute()
    # Weight decay has a visible effect, and |g + weight_decay x| is known.
    assert float(abs(expected.gamma - without.gamma).median()) > 0.01
    np.testing.assert_allclose(
        result.eb * result.distance, expected.eb * expected.distance, rtol=1e-4
    )
    z = z_scores(result, expected, "gamma")
    # The bounds are those for 60 steps; the first layer is the largest.
    assert 0.7 < float(z.isel(layer=0).std() if layers else z.std()) < 1.3


def test_weight_decay_without_a_basis_needs_whole_vectors(
    tmp_path: Path, train_small: Train, exact: Run
):
    path = tmp_path / "sketched.zarr"
    run = recorded(path, train_small, sketch_bits=256, probes=64, basis=0)
    with pytest.raises(
        ValueError,
        match=r"^Weight decay in the gradient needs .*sketched\.zarr does not have: it "
        r"was recorded with basis=0; record with basis=1 or more\.$",
    ):
        analyzers.path_geometry(run, weight_decay=0.05)
    whole = recorded(tmp_path / "exact.zarr", train_small, exact=True, basis=0)
    found = analyzers.path_geometry(whole, weight_decay=0.05).compute()
    expected = analyzers.path_geometry(exact, weight_decay=0.05).compute()
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name])


def test_standard_error_without_a_basis_counts_all_of_v(
    tmp_path: Path, train_small: Train, exact: Run
):
    """The formula of `docs/estimator.md`, bucket by bucket, with v instead of v'."""
    path = tmp_path / "run.zarr"
    run = recorded(path, train_small, sketch_bits=256, probes=64, basis=0)
    geometry = analyzers.path_geometry(run).compute()
    layout, width = run.layout, run.stored.sketch.fold.width
    whole, n_rows = slice(0, run.layout.size), run.stored.sketch.fold.n_rows

    def fold(squares: Any) -> Any:
        padded = np.zeros(n_rows * width)
        padded[: len(squares)] = squares
        return padded.reshape(n_rows, width)

    for step in (0, 13, 40, 57):
        window = int(run.stored.array("window")[step])
        v = run.stored.array("final")[:].astype(np.float64) - run.stored.anchors.decode(
            window, whole
        )
        weights = run.windows.weights.values[window].astype(np.float64)
        gradient = exact.stored.array("gradient")[step].astype(np.float64)
        G_sq, u_sq = np.zeros(layout.size), np.zeros(layout.size)
        for offset, size, w in zip(layout.offsets, layout.sizes, weights, strict=True):
            part = slice(int(offset), int(offset + size))
            # The estimator assumes that the energy is even within a layer.
            G_sq[part] = w**2 * (gradient[part] ** 2).mean()
            u_sq[part] = v[part] ** 2 / w**2
        g, u = fold(G_sq), fold(u_sq)
        variance = (g.sum(0) * u.sum(0)).sum() - (g * u).sum()
        variance += (np.pi / 2 - 1) / 256 * g.sum() * u.sum()
        lolr_stderr = np.sqrt(variance) / (gradient**2).sum()
        np.testing.assert_allclose(geometry.lolr_stderr[step], lolr_stderr, rtol=1e-4)


# Exact recordings


@pytest.mark.parametrize("name", QUANTITIES)
def test_exact_run_equals_the_two_run_protocol(
    exact: Run, truth: xr.Dataset, name: str
):
    result = analyzers.path_geometry(exact).compute()
    # Gradients are the same bits; x - x* is rounded to float32 twice.
    np.testing.assert_allclose(result[name], truth[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result[f"{name}_stderr"], 0)


@pytest.mark.parametrize("name", QUANTITIES)
def test_exact_run_equals_the_two_run_protocol_by_layer(
    exact: Run, truth_by_layer: xr.Dataset, name: str
):
    result = analyzers.path_geometry(exact, layers=True).compute()
    assert result.layer.values.tolist() == truth_by_layer.layer.values.tolist()
    np.testing.assert_allclose(result[name], truth_by_layer[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result[f"{name}_stderr"], 0)


def test_coordinates_are_those_of_the_protocol(geometry: xr.Dataset, truth: xr.Dataset):
    for name in ("step", "epoch", "iteration"):
        np.testing.assert_array_equal(geometry[name], truth[name])


# Properties of the result


def test_attributes_define_the_variables(geometry: xr.Dataset):
    assert geometry.gamma.attrs == {
        "long_name": "cosine of gradient and x - x*",
        "definition": "<g, x - x*> / (|g| |x - x*|)",
        "units": "1",
    }
    assert geometry.rsi.attrs["definition"] == "<g, x - x*> / |x - x*|^2"
    assert geometry.eb.attrs["definition"] == "|g| / |x - x*|"
    assert geometry.lolr.attrs["definition"] == "<g, x - x*> / |g|^2"
    assert geometry.distance.attrs["definition"] == "|x - x*|"
    assert geometry.gamma_stderr.attrs["long_name"] == "standard error of gamma"
    assert {v.attrs["units"] for v in geometry.data_vars.values()} == {"1"}
    assert "arXiv 2306.11922" in geometry.attrs["source"]
    assert geometry.attrs["status"] == "complete"


@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
@pytest.mark.parametrize("mode", ["example_run", "exact_run"])
def test_building_the_graph_computes_nothing(
    request: pytest.FixtureRequest, mode: str, layers: bool
):
    run = trajstore.open_run(request.getfixturevalue(mode))
    with dask.config.set(scheduler=fail_if_computed):
        lazy = analyzers.path_geometry(run, layers=layers)
        assert all(v.chunks is not None for v in lazy.data_vars.values())
    computed = lazy.compute()
    for name, variable in lazy.data_vars.items():
        assert variable.dtype == computed[name].dtype == np.float64
        assert variable.shape == computed[name].shape
        assert np.isfinite(computed[name]).all()


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({"sketch_bits": 256, "probes": 64}, False),
        ({"sketch_bits": 256, "probes": 64}, True),
        ({"exact": True}, False),
    ],
    ids=["sketched", "sketched, layers", "exact"],
)
def test_result_does_not_depend_on_chunks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    layers: bool,
):
    train = partial(by_hand, n_steps=16, steps_per_epoch=16)
    run = recorded(tmp_path / "run.zarr", train, **options)
    expected = analyzers.path_geometry(run, layers=layers).compute()
    for module, constant, value in (
        # Parts hold two steps, eight rows of the fold or two blocks; the result has four.
        ("_engine.vectors.project", "STEP_BYTES", 2 * 4 * 256),
        ("_engine.vectors.energies", "SQUARES", 3 * 256),
        ("_engine.exact", "READ_BYTES", 2 * 4 * 2048),
        ("_engine.tasks", "PART", 2048),
        ("_engine.tasks", "ROW_PART", 2048),
        ("_engine.vectors.walk", "READ_ELEMENTS", 1024),
        ("_engine.slices", "SEGMENT", 100),
        ("geometry.path_geometry", "RESULT_ROWS", (4, 5)),
    ):
        monkeypatch.setattr(sys.modules[f"analyzers.{module}"], constant, value)
    result = analyzers.path_geometry(run, layers=layers)
    assert result.gamma.chunks[0] == (4,) * 4
    for name, variable in expected.data_vars.items():
        # Where the basis explains nearly everything, the residual and its standard error
        # are differences of large numbers.
        np.testing.assert_allclose(result[name], variable, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
def test_compiled_loops_change_nothing_but_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: bool
):
    pytest.importorskip("numba")
    train = partial(by_hand, n_steps=16, steps_per_epoch=8)
    run = recorded(tmp_path / "run.zarr", train, sketch_bits=1024)
    assert run.spec.bits_per_number == 1
    expected = analyzers.path_geometry(run, layers=layers).compute()
    monkeypatch.setattr(sketch, "COMPILED_FROM", 0)
    result = analyzers.path_geometry(run, layers=layers).compute()
    assert (result.gamma != expected.gamma).any()
    for name, variable in expected.data_vars.items():
        np.testing.assert_allclose(result[name], variable, rtol=1e-4, atol=1e-6)


def test_analysis_needs_no_torch(example_run: Path):
    expected = analyzers.path_geometry(trajstore.open_run(example_run)).gamma.sum()
    code = f"""
import sys
import analyzers, analyzers.cli, trajstore
run = trajstore.open_run({str(example_run)!r})
total = float(analyzers.path_geometry(run).gamma.sum())
print(total, "torch" in sys.modules, "numba" in sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    total, *are_there = run.stdout.split()
    assert float(total) == pytest.approx(float(expected), rel=1e-6)
    # Short runs do without compiled loops.
    assert are_there == ["False", "False"]


@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
def test_round_trip_through_zarr(
    sketched: Run,
    geometry: xr.Dataset,
    by_layer: xr.Dataset,
    tmp_path: Path,
    layers: bool,
):
    result = analyzers.path_geometry(sketched, layers=layers)
    result.to_zarr(tmp_path / "result.zarr", consolidated=False)
    stored = xr.open_zarr(tmp_path / "result.zarr", consolidated=False)
    xr.testing.assert_identical(
        trajstore.index_epochs(stored.compute()), by_layer if layers else geometry
    )


@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
def test_round_trip_through_netcdf(
    sketched: Run,
    geometry: xr.Dataset,
    by_layer: xr.Dataset,
    tmp_path: Path,
    layers: bool,
):
    pytest.importorskip("h5py")
    result = analyzers.path_geometry(sketched, layers=layers)
    result.to_netcdf(tmp_path / "result.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "result.nc", engine="h5netcdf") as stored:
        indexed = trajstore.index_epochs(stored.load())
        xr.testing.assert_identical(indexed, by_layer if layers else geometry)
