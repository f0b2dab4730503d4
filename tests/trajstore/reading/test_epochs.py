"""Test that steps are selected by epoch and iteration, and arranged in a grid."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trajstore.handmade import SPEC, random_rows, write_run
from trajstore import epoch_grid, index_epochs, open_run
from trajstore.store.writer import Writer

N, PER_EPOCH = 23, 6
"""Number of steps: three epochs of six steps, and five steps of a fourth epoch."""


def make(n: int = N) -> xr.Dataset:
    steps = np.arange(n)
    variables = {
        "loss": ("step", steps + 0.5, {"units": "nat"}),
        "table": (("layer", "step"), np.stack([steps, -steps]).astype("f4")),
        "count": ("step", steps),
        "fixed": ("layer", [1.0, 2.0]),
    }
    coordinates = {
        "step": steps,
        "epoch": ("step", steps // PER_EPOCH, {"long_name": "epoch"}),
        "iteration": ("step", steps % PER_EPOCH),
        "layer": ["a", "b"],
    }
    return xr.Dataset(variables, coordinates, {"status": "complete"})


PLAIN = make()
STEPS = index_epochs(PLAIN)


def test_an_index_does_not_change_values():
    xr.testing.assert_identical(STEPS.drop_indexes(["epoch", "iteration"]), PLAIN)
    assert set(STEPS.xindexes) == {"step", "epoch", "iteration", "layer"}
    xr.testing.assert_identical(index_epochs(STEPS), STEPS)


SELECTIONS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "an epoch": ({"epoch": 2}, [12, 13, 14, 15, 16, 17]),
    "both ends": ({"epoch": slice(2, 3)}, list(range(12, 23))),
    "from": ({"epoch": slice(3, None)}, list(range(18, 23))),
    "up to": ({"iteration": slice(None, 0)}, [0, 6, 12, 18]),
    "beyond": ({"epoch": slice(8, 9)}, []),
    "several": ({"epoch": [3, 0]}, [*range(6), *range(18, 23)]),
    "an iteration": ({"iteration": 5}, [5, 11, 17]),
    "both": ({"epoch": slice(1, 2), "iteration": [0, 3]}, [6, 9, 12, 15]),
    "a number each": ({"epoch": 2, "iteration": slice(1, 1)}, [13]),
    "an array": ({"epoch": xr.DataArray(2)}, [12, 13, 14, 15, 16, 17]),
}


@pytest.mark.parametrize(("labels", "steps"), SELECTIONS.values(), ids=SELECTIONS)
def test_steps_are_selected_by_epoch_and_iteration(
    labels: dict[str, Any], steps: list[int]
):
    selected = STEPS.sel(labels)
    assert selected["step"].values.tolist() == steps
    expected = index_epochs(PLAIN.isel(step=steps))
    xr.testing.assert_identical(selected, expected)
    # A selection can be selected from again.
    xr.testing.assert_identical(
        selected.sel(epoch=slice(2, 2)), expected.sel(epoch=slice(2, 2))
    )


def test_an_epoch_and_an_iteration_select_one_step():
    step = STEPS.sel(epoch=2, iteration=1)
    assert step["loss"].dims == ()
    assert step["step"].item() == 13
    assert step["loss"].item() == 13.5


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "epoch": ({"epoch": 4}, KeyError, r"No epoch \[4\]; expected 0 to 3"),
    "several": ({"epoch": [1, 7, 9]}, KeyError, r"No epoch \[7, 9\]; expected 0 to 3"),
    "pair": ({"epoch": 3, "iteration": 5}, KeyError, "0 steps have .*expected one"),
    "step": ({"epoch": slice(0, 3, 2)}, ValueError, "'epoch' takes no step"),
    "nearest": (
        {"epoch": 3, "method": "nearest"},
        ValueError,
        "omit `method` and",
    ),
}


@pytest.mark.parametrize(("labels", "kind", "message"), WRONG.values(), ids=WRONG)
def test_absent_epochs_and_iterations_are_an_error(
    labels: dict[str, Any], kind: type[Exception], message: str
):
    with pytest.raises(kind, match=message):
        STEPS.sel(**labels)


def test_datasets_are_aligned_by_step():
    later, earlier = STEPS.isel(step=slice(4, None)), STEPS.isel(step=slice(9))
    xr.testing.assert_identical(
        (later["loss"] * earlier["loss"]).drop_attrs(),
        (STEPS["loss"] ** 2).isel(step=slice(4, 9)).drop_attrs(),
    )
    either = xr.align(later, earlier, join="outer")
    for dataset in either:
        np.testing.assert_array_equal(dataset["step"], STEPS["step"])
        np.testing.assert_array_equal(dataset["epoch"], STEPS["epoch"])
        np.testing.assert_array_equal(dataset["iteration"], STEPS["iteration"])
    assert np.isnan(either[0]["loss"][:4]).all()
    assert either[1].sel(epoch=1)["loss"].count() == 3


OPERATIONS: dict[str, Callable[[xr.Dataset], Any]] = {
    "difference": lambda ds: ds["loss"].diff("step") - ds["loss"],
    "mean": lambda ds: ds["loss"].groupby("epoch").mean(),
    "groups": lambda ds: ds.groupby("iteration").max(),
    "deviation": lambda ds: (
        ds["loss"].groupby("epoch") - ds["loss"].groupby("epoch").mean()
    ),
    "rolling": lambda ds: ds["loss"].rolling(step=3).mean() - ds["loss"],
    "where": lambda ds: ds.where(ds["loss"] > 7, drop=True),
    "dropna": lambda ds: ds["loss"].where(ds["loss"] > 7).dropna("step") + ds["loss"],
    "concat": lambda ds: xr.concat(
        [ds.isel(step=slice(3)), ds.isel(step=slice(3, 9))], "step", data_vars="minimal"
    ),
    "frame": lambda ds: ds["loss"].to_dataframe().to_xarray()["loss"],
    "sorted": lambda ds: ds.sortby("loss", ascending=False),
    "copy": lambda ds: ds.copy(deep=True),
    "coarsened": lambda ds: ds["loss"].coarsen(step=4, boundary="trim").mean(),
    "one": lambda ds: ds.isel(step=-1),
    "pickled": lambda ds: pickle.loads(pickle.dumps(ds)),
    "loaded": lambda ds: ds.chunk(step=5).compute(),
    "renamed": lambda ds: ds.rename(epoch="pass")["pass"].drop_attrs(),
    "written": lambda ds: ds.to_dict(),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_xarray_computes_as_it_does_without_the_index(
    operation: Callable[[xr.Dataset], Any],
):
    found, expected = operation(STEPS), operation(PLAIN)
    if isinstance(found, dict):
        assert found == expected
        return
    indexed = [n for n in ("epoch", "iteration", "pass") if n in found.xindexes]
    others = [n for n in indexed if n not in expected.xindexes]
    xr.testing.assert_identical(found.drop_indexes(others), expected)


def test_concatenated_steps_are_selected():
    halves = [STEPS.isel(step=slice(0, 14)), STEPS.isel(step=slice(14, None))]
    whole = xr.concat(halves, "step", data_vars="minimal")
    xr.testing.assert_identical(whole.sel(epoch=2), STEPS.sel(epoch=2))
    renamed = STEPS.rename(epoch="pass")
    assert renamed.sel({"pass": 1})["step"].values.tolist() == list(range(6, 12))


def test_a_dataset_without_epochs_is_refused():
    message = r"No coordinates \['epoch'\] in the dataset; it has \['step', 'iteration'"
    for function in (index_epochs, epoch_grid):
        with pytest.raises(KeyError, match=message):
            function(PLAIN.drop_vars("epoch"))


# The grid


def slow_grid(values: Any, epochs: Any, iterations: Any) -> Any:
    rows, columns = sorted(set(epochs)), sorted(set(iterations))
    grid = np.full((len(rows), len(columns)), np.nan)
    for value, epoch, iteration in zip(values, epochs, iterations, strict=True):
        grid[rows.index(epoch), columns.index(iteration)] = value
    return grid


@pytest.mark.parametrize("chunk", [None, 1, 5, 100])
@pytest.mark.parametrize("n", [18, 23, 4, 1])
def test_a_grid_holds_every_step_in_its_place(n: int, chunk: int | None):
    steps = make(n)
    grid = epoch_grid(index_epochs(steps if chunk is None else steps.chunk(step=chunk)))
    assert grid["loss"].dims == ("epoch", "iteration")
    assert grid["table"].dims == ("epoch", "iteration", "layer")
    epochs, iterations = steps["epoch"].values, steps["iteration"].values
    for name in ("loss", "count"):
        expected = slow_grid(steps[name].values, epochs, iterations)
        np.testing.assert_array_equal(grid[name].values, expected)
    for i in range(2):
        expected = slow_grid(steps["table"].values[i], epochs, iterations)
        np.testing.assert_array_equal(grid["table"].values[..., i], expected)
    assert grid["table"].dtype == np.float32
    assert grid["count"].dtype == (np.int64 if n in {18, 4, 1} else np.float64)
    assert set(grid.coords) == {"epoch", "iteration", "step", "layer"}
    assert (grid.attrs, grid["loss"].attrs) == (steps.attrs, {"units": "nat"})
    xr.testing.assert_identical(grid["fixed"].variable, steps["fixed"].variable)


@settings(max_examples=40)
@given(
    places=st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 5)), unique=True, min_size=1
    ),
    chunk=st.none() | st.integers(1, 8),
)
def test_epochs_of_any_length_in_any_order_make_a_grid(
    places: list[tuple[int, int]], chunk: int | None
):
    epochs, iterations = zip(*places, strict=True)
    values = np.arange(len(places)) + 1.0
    steps = xr.Dataset(
        {"loss": ("step", values)},
        {
            "step": values.astype(int),
            "epoch": ("step", list(epochs)),
            "iteration": ("step", list(iterations)),
        },
    )
    grid = epoch_grid(steps if chunk is None else steps.chunk(step=chunk))
    np.testing.assert_array_equal(grid["loss"], slow_grid(values, epochs, iterations))
    assert grid["epoch"].values.tolist() == sorted(set(epochs))
    row = grid["loss"].isel(epoch=-1, iteration=slice(None, None, 2)).values
    np.testing.assert_array_equal(row, slow_grid(values, epochs, iterations)[-1, ::2])


def test_a_grid_of_dask_arrays_computes_nothing():
    import dask

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        pytest.fail("computed while building the grid")

    with dask.config.set(scheduler=refuse):
        grid = epoch_grid(STEPS.chunk(step=4))
    assert grid["loss"].chunks is not None
    assert np.nansum(grid["loss"]) == make()["loss"].sum()


def test_a_grid_of_a_run_reads_only_the_values_used(tmp_path: Path):
    write_run(tmp_path / "run.zarr", n_steps=10)
    run = open_run(tmp_path / "run.zarr")
    grid = epoch_grid(run.steps)
    assert run.stored._chunk.cache_info().currsize == 0  # type: ignore[attr-defined]
    np.testing.assert_array_equal(grid["loss"].sel(epoch=1), [-4, -5, -6, -7])
    np.testing.assert_array_equal(
        grid["window"], [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, np.nan, np.nan]]
    )
    assert grid["grad_dot_basis"].dims == ("epoch", "iteration", "layer", "basis")


def test_steps_whose_epoch_is_lost_are_left_out():
    steps = make(12)
    epochs = steps["epoch"].values.copy()
    epochs[6:9] = -1
    grid = epoch_grid(steps.assign_coords(epoch=("step", epochs)))
    assert grid["loss"].count() == 9
    assert grid["epoch"].values.tolist() == [0, 1]


def test_two_steps_of_the_same_epoch_and_iteration_are_refused():
    steps = make(12).assign_coords(epoch=("step", [0] * 12))
    with pytest.raises(
        ValueError, match="6 of 12 steps have the same epoch and iteration"
    ):
        epoch_grid(steps)


# Runs


def test_steps_of_a_run_are_selected_by_epoch(tmp_path: Path):
    write_run(tmp_path / "run.zarr", n_steps=10)
    steps = open_run(tmp_path / "run.zarr").steps
    assert steps.sel(epoch=1)["loss"].values.tolist() == [-4, -5, -6, -7]
    assert steps.sel(epoch=2, iteration=1)["loss"] == -9


def test_selecting_from_many_steps_reads_only_one_chunk(tmp_path: Path):
    writer = Writer(tmp_path / "run.zarr", SPEC)
    n = 20_000
    rows = random_rows(0, n)
    writer.steps.append(rows, [{"loss": float(k)} for k in range(n)])
    writer.commit()
    writer.close()
    run = open_run(tmp_path / "run.zarr")
    epoch = run.steps.sel(epoch=slice(100, 101))
    assert epoch["loss"].values.tolist() == list(range(400, 408))
    # Only one of three chunks of scalars was read.
    assert run.stored._chunk.cache_info().currsize == 1  # type: ignore[attr-defined]


def test_results_are_aligned_with_their_steps(example_run: Path):
    pytest.importorskip("dask")
    import analyzers

    run = open_run(example_run)
    geometry = analyzers.path_geometry(run).compute()
    product = (run.steps["loss"] * geometry["gamma"]).sel(epoch=2)
    assert product.sizes == {"step": 12}
    both = run.steps[["loss"]].merge(geometry)
    xr.testing.assert_identical(both["gamma"].drop_vars("window"), geometry["gamma"])
    part = run.steps["loss"].sel(epoch=slice(1, 2)) - geometry["gamma"]
    assert part["step"].values.tolist() == list(range(12, 36))
    grid = epoch_grid(geometry)
    assert dict(grid["gamma"].sizes) == {"epoch": 5, "iteration": 12}
    np.testing.assert_array_equal(
        grid["gamma"].values.reshape(-1), geometry["gamma"].values
    )
