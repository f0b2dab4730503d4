"""Test that a damaged chunk costs only the steps whose results depend on it."""

import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import xarray as xr

import analyzers
from trajstore import open_run
from trajstore.format import arrays

pytest.importorskip("torch")

ROWS = 8
"""Number of steps in a chunk of these runs."""


@pytest.fixture(scope="module", autouse=True)
def _small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "MAX_CHUNK_ROWS", ROWS)
        patch.setattr(arrays, "VECTOR_CHUNK", {"int8": 2048, "float32": 2048})
        yield


def record(path: Path, train_small: Callable[..., Any], **options: Any) -> Path:
    from trajstore import Recorder

    train_small(partial(Recorder, path), **options)
    return path


@pytest.fixture(scope="module")
def sketched(
    tmp_path_factory: pytest.TempPathFactory, train_small: Callable[..., Any]
) -> Path:
    path = tmp_path_factory.mktemp("sketched") / "run.zarr"
    return record(path, train_small, sketch_bits=1024, probes=256)


@pytest.fixture(scope="module")
def exact(
    tmp_path_factory: pytest.TempPathFactory, train_small: Callable[..., Any]
) -> Path:
    return record(
        tmp_path_factory.mktemp("exact") / "run.zarr", train_small, exact=True
    )


def computed(path: Path, reference: Any = "final", *, layers: bool) -> xr.Dataset:
    run = open_run(path)
    result = analyzers.path_geometry(run, reference=reference, layers=layers)
    return result.compute(scheduler="sync")


def everything(path: Path) -> xr.Dataset:
    """Compute the geometry, and load the variables that it does not read."""
    open_run(path).steps[["loss", "window"]].load()
    return computed(path, layers=False)


def chunk(index: int) -> Callable[[xr.Dataset], set[int]]:
    """Return a function that returns the steps in a chunk of rows."""
    return lambda _windows: set(range(index * ROWS, (index + 1) * ROWS))


def windows_with(lost: Callable[[int], bool]) -> Callable[[xr.Dataset], set[int]]:
    """Return a function that returns the steps whose anchor or basis needs a lost window."""

    def steps(windows: xr.Dataset) -> set[int]:
        start, stop = windows["start"].values, windows["stop"].values
        return {
            step
            for c in range(len(start))
            if any(lost(w) for w in (c, max(c - 1, 0), max(c - 2, 0)))
            for step in range(start[c], stop[c])
        }

    return steps


class Case(NamedTuple):
    key: str
    steps: Callable[[xr.Dataset], set[int]]
    names: tuple[str, ...] = ("gamma", "rsi", "eb", "lolr", "distance")


ALL = windows_with(lambda _window: True)

DAMAGES = {
    "signs": Case("signs/c/2/0", chunk(2), ("gamma", "rsi", "lolr")),
    "scales": Case("scales/c/0/0", chunk(0), ("gamma", "rsi", "lolr")),
    "tables": Case("tables/c/3/0/0", chunk(3)),
    "probes": Case("displacement_probes/c/1/0", chunk(1), ("eb", "distance")),
    "codes": Case("references/codes/c/3/1", windows_with(lambda w: w >= 3)),
    "keyframe": Case("references/keyframes/c/0/0", ALL),
    "final": Case("final/c/1", ALL),
    "weights": Case(
        "references/weights/c/1/0",
        windows_with(lambda w: w >= 8),
        ("gamma", "rsi", "lolr"),
    ),
    "epochs": Case("epoch/c/1", lambda _windows: set()),
    "iterations": Case("iteration/c/0", lambda _windows: set()),
    "window": Case("window/c/4", lambda _windows: set()),
    "starts": Case("references/start/c/0", lambda _windows: set()),
    "loss": Case("scalars/c/0/0", lambda _windows: set()),
}


def remove(file: Path) -> None:
    file.unlink()


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.filterwarnings("ignore:.*the target, 'final', is not finite")
@pytest.mark.parametrize("damage", [remove, flip])
@pytest.mark.parametrize("case", DAMAGES.values(), ids=DAMAGES)
def test_damage_costs_its_steps_only(
    sketched: Path, tmp_path: Path, case: Case, damage: Callable[[Path], None]
):
    path = tmp_path / "run.zarr"
    shutil.copytree(sketched, path)
    damage(path / case.key)
    whole, windows = computed(sketched, layers=False), open_run(sketched).windows
    whole.attrs["run"] = str(path)
    with pytest.warns(UserWarning, match=re.escape(f"chunk {case.key} ")):
        result = everything(path)
    lost = np.isin(np.arange(60), list(case.steps(windows)))
    for name in case.names:
        assert np.isnan(result[name].values[lost]).all()
    # In the window before a lost anchor the displacement to its end is not known, and the
    # distance is less precise.
    blurred = case.key == "references/codes/c/3/1"
    end = windows["start"].values[2] if blurred else 60
    # The sum of a window with lost steps, rates or ends is not known.
    damaged = lost | (np.arange(60) // ROWS == 0) if case.key[:5] == "scala" else lost
    touched = np.zeros(60, bool)
    for start, stop in zip(
        windows["start"].values, windows["stop"].values, strict=True
    ):
        # Later windows lack the momentum that the lost steps have left.
        touched[start:stop] = touched.any() or damaged[start : stop + 1].any()
    same = ~touched & (np.arange(60) < end)
    xr.testing.assert_identical(result.isel(step=same), whole.isel(step=same))
    kept = touched & ~lost & (np.arange(60) < end)
    for name in ("gamma", "distance"):
        error = np.abs(result[name].values - whole[name].values)[kept]
        assert (error <= 5 * result[f"{name}_stderr"].values[kept]).all()
    if blurred:
        before = slice(end, windows["start"].values[3])
        result, whole = result.isel(step=before), whole.isel(step=before)
        error = np.abs(result["distance"] - whole["distance"])
        assert np.isfinite(result["gamma"]).all()
        assert (error < 5 * result["distance_stderr"]).all()


def test_a_warning_names_each_damaged_chunk_once(sketched: Path, tmp_path: Path):
    path = tmp_path / "run.zarr"
    shutil.copytree(sketched, path)
    for key in ("signs/c/2/0", "tables/c/3/0/0", "references/codes/c/3/1"):
        remove(path / key)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        computed(path, layers=False)
    texts = [str(warning.message) for warning in caught]
    assert sorted(
        text.split(" is missing")[0].split("chunk ")[1] for text in texts
    ) == [
        "references/codes/c/3/1",
        "signs/c/2/0",
        "tables/c/3/0/0",
    ]
    assert all(f"See traj-store verify {path}" in text for text in texts)


def test_means_count_missing_steps(sketched: Path, tmp_path: Path):
    path = tmp_path / "run.zarr"
    shutil.copytree(sketched, path)
    remove(path / "tables/c/3/0/0")
    with pytest.warns(UserWarning, match=r"tables/c/3/0/0 is missing"):
        means = analyzers.epoch_means(computed(path, layers=False))
    # Steps 24 to 31 belong to the third epoch; epochs have twelve steps.
    assert means["n_missing"].values.tolist() == [0, 0, 8, 0, 0]
    assert np.isfinite(means["gamma"]).all()


def test_damage_of_an_exact_recording_costs_its_steps_only(exact: Path, tmp_path: Path):
    path = tmp_path / "run.zarr"
    shutil.copytree(exact, path)
    remove(path / "gradient/c/2/0")
    flip(path / "displacement/c/4/0")
    whole = computed(exact, layers=False).assign_attrs(run=str(path))
    with (
        pytest.warns(UserWarning, match=r"gradient/c/2/0 is missing"),
        pytest.warns(UserWarning, match=r"displacement/c/4/0 is damaged: Stored and"),
    ):
        result = computed(path, layers=False)
    lost = np.isin(np.arange(60) // ROWS, [2, 4])
    assert np.isnan(result["gamma"].values[lost]).all()
    xr.testing.assert_identical(result.isel(step=~lost), whole.isel(step=~lost))


LOST_SIGNS = ("eb", "distance")
"""Quantities that need no signs."""


@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
def test_errors_without_signs_are_those_of_the_distance(
    sketched: Path, tmp_path: Path, layers: bool
):
    path = tmp_path / "run.zarr"
    shutil.copytree(sketched, path)
    # Chunks 3 and 4 hold the steps 24 to 39; the third epoch has the steps 24 to 35.
    for index in (3, 4):
        remove(path / f"signs/c/{index}/0")
    whole = computed(sketched, layers=layers)
    with pytest.warns(UserWarning, match="signs/c/"):
        result = computed(path, layers=layers)
    before, after = (
        analyzers.epoch_means(each).sel(epoch=2) for each in (whole, result)
    )
    for name in LOST_SIGNS:
        assert np.isfinite(result[f"{name}_stderr"]).all()  # 0 at an anchor
        # Sums of gradients no longer sharpen the distance.
        ratio = after[f"{name}_stderr"] / before[f"{name}_stderr"]
        assert ((ratio > 0.5) & (ratio < 100)).all()
        middle = analyzers.mid_run(analyzers.epoch_means(result))
        assert (middle[f"{name}_stderr"] > 0).all()
    assert (after["distance_n_steps"] == 12).all()
    assert (after["gamma_n_steps"] == 0).all()
    assert (after["n_missing"] == 12).all()
    assert np.isnan(after[["gamma", "gamma_stderr"]].to_array()).all()


def test_errors_without_probes_are_those_of_the_product(sketched: Path, tmp_path: Path):
    path = tmp_path / "run.zarr"
    shutil.copytree(sketched, path)
    remove(path / "displacement_probes/c/1/0")
    with pytest.warns(UserWarning, match="displacement_probes/c/1/0"):
        result = computed(path, layers=False)
    lost = slice(ROWS, 2 * ROWS)
    assert np.isfinite(result["lolr"][lost]).all()
    assert (result["lolr_stderr"][lost] > 0).all()
    assert (analyzers.epoch_means(result)["lolr_stderr"] > 0).all()
