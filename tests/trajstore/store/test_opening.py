"""Test that a damaged store is read within bounded memory and without wrong rows."""

import json
import shutil
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trajstore.handmade import SIZE, change_root_of, write_run
from tests.trajstore.store.test_chunks import with_checksum
from trajstore import SchemaError, open_run
from trajstore.format.document import (
    MAX_BASIS,
    MAX_DIMENSIONS,
    MAX_MEASUREMENTS,
    MAX_SIZE,
    MAX_TENSORS,
)
from trajstore.store.chunks import MAX_DOCUMENT_BYTES, ChunkError
from trajstore.store.opening import MAX_UNCHECKED_BYTES

MEMORY: Final = 32 << 20
"""Number of bytes that suffice to read the small run, whether damaged or not."""

pytestmark = pytest.mark.filterwarnings("ignore:.*read as NaN")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a run that tests must leave unchanged."""
    path = tmp_path_factory.mktemp("whole") / "run.zarr"
    write_run(path, n_steps=10, n_measured=4)
    return path


@pytest.fixture(scope="module")
def whole(path: Path) -> dict[str, Any]:
    return read_all(path)


@contextmanager
def changed(file: Path, data: bytes) -> Iterator[None]:
    before = file.read_bytes()
    file.write_bytes(data)
    try:
        yield
    finally:
        file.write_bytes(before)


@contextmanager
def bounded_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY


def read_all(path: Path) -> dict[str, Any]:
    """Read all data that analyses read."""
    run = open_run(path)
    arrays = {
        name: run.stored.rows(name, slice(0, array.length))
        for name, array in run.stored.document.arrays.items()
        if array.spec.dims[0] == "step"
    }
    for measurement in run.measurements:
        measured = run.measured(measurement)
        loaded = measured.steps.load()
        arrays |= {
            f"{measured.stored.path('')}{name}": loaded[name].values
            for name in loaded.data_vars
        }
    every = slice(0, run.layout.size)
    arrays |= {
        f"window {c}": run.stored.anchors.decode(c, every) for c in range(run.n_windows)
    }
    if run.has_final:
        arrays["final"] = run.stored.vector("final", every)
    steps = run.steps.load()
    return (
        arrays
        | {str(name): steps[name].values for name in steps.variables}
        | {f"windows {name}": variable.values for name, variable in run.windows.items()}
    )


def places(document: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every value of a JSON document."""
    yield place
    if isinstance(document, dict | list):
        keys = document if isinstance(document, dict) else range(len(document))
        for key in keys:
            yield from places(document[key], (*place, key))


def replaced(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    document = document.copy()
    document[place[0]] = replaced(document[place[0]], place[1:], value)
    return document


numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(-3, 40),
    st.sampled_from([2**k for k in range(10, 66, 5)]),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.floats(), st.text(max_size=5)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=6,
)


@settings(max_examples=100)
@given(data=st.data(), value=values)
def test_any_change_of_the_root_document_is_refused_or_harmless(
    path: Path, whole: dict[str, Any], data: st.DataObject, value: Any
):
    root = json.loads((path / "zarr.json").read_bytes())
    place = data.draw(st.sampled_from(list(places(root))))
    text = json.dumps(replaced(root, place, value)).encode()
    with (
        changed(path / "zarr.json", text),
        bounded_memory(),
        # A chunk of another size is damaged.
        suppress(SchemaError, ChunkError),
    ):
        found = read_all(path)
        for name in ("tables", "signs", "window", "epoch"):
            np.testing.assert_array_equal(found[name], whole[name])


def chunks(path: Path) -> list[Path]:
    return sorted(f for f in path.rglob("*") if f.is_file() and "/c/" in str(f))


@settings(max_examples=20)
@given(data=st.data(), is_crafted=st.booleans())
def test_any_change_of_a_chunk_costs_only_its_values(
    path: Path, whole: dict[str, Any], data: st.DataObject, is_crafted: bool
):
    file = data.draw(st.sampled_from(chunks(path)))
    before = file.read_bytes()
    start = data.draw(
        st.integers(0, min(40, len(before))) | st.integers(0, len(before))
    )
    new = data.draw(st.binary(max_size=24))
    after = before[:start] + new + before[start + data.draw(st.integers(0, 30)) :]
    if is_crafted:
        after = with_checksum(after[:-4])
    array = str(file.relative_to(path)).partition("/c/")[0]
    with changed(file, after), bounded_memory(), suppress(SchemaError):
        found = read_all(path)
        for name, values in found.items():
            if is_crafted and rests_on(name, array):
                continue
            # Lost integers read as zeros, unless they are recomputed from other arrays.
            is_integer = values.dtype.itemsize == 1 or name.startswith("measurements/")
            is_zero = is_integer and values.dtype.kind != "f"
            lost = values == 0 if is_zero else is_nan(values)
            assert ((values == whole[name]) | lost).all()


def is_nan(values: Any) -> Any:
    return np.isnan(values) if values.dtype.kind == "f" else False


def rests_on(name: str, array: str) -> bool:
    """Whether `name` is computed from `array`, so its values change without reported damage."""
    if array.startswith("references/"):
        return name.startswith("window")
    group, _, array = array.rpartition("/")
    if group:
        return name.startswith(group)
    return name == array or array in {
        "scalars",
        "tables",
        "epoch",
        "iteration",
        "window",
    }


def nested(depth: int) -> bytes:
    return b'{"attributes":' + b"[" * depth + b"]" * depth + b"}"


TEXTS = {
    "deep": (nested(100_000), "truncated or damaged"),
    "deep in strings": (b'{"a":' * 100_000, "truncated or damaged"),
    "long number": (b'{"attributes":' + b"9" * 100_000 + b"}", "truncated or damaged"),
    "not utf-8": (b'{"\xff\xfe": 1}', "truncated or damaged"),
    "long": (b" " * (MAX_DOCUMENT_BYTES + 1), "zarr.json is longer than the 8388608"),
}


@pytest.mark.parametrize(("text", "message"), TEXTS.values(), ids=TEXTS)
def test_text_that_is_not_a_document_is_refused(path: Path, text: bytes, message: str):
    with (
        changed(path / "zarr.json", text),
        pytest.raises(SchemaError, match=message),
    ):
        open_run(path)


def many_tensors(attributes: dict[str, Any]) -> None:
    names = [str(i) for i in range(MAX_TENSORS + 1)]
    attributes["spec"].update(names=names, shapes=[[1]] * len(names))


def set_spec(**values: Any) -> Any:
    return lambda attributes: attributes["spec"].update(values)


def set_snapshot(array: str) -> Any:
    snapshots = {"warm": {"array": array, "step": 3}}
    return lambda attributes: attributes.update(snapshots=snapshots)


def set_measurement(**measurement: Any) -> Any:
    whole = {"group": "measurements/0", "metrics": []} | measurement
    return lambda attributes: attributes.update(measurements={"other": whole})


ABSURD = {
    "group": (set_measurement(group="../0"), "measurements: expected an object of"),
    "number": (set_measurement(group="measurements/1"), "measurements: expected an"),
    "metrics of rows": (
        set_measurement(metrics=["grad_sq"]),
        r"metrics: \['grad_sq'\] are names of tables",
    ),
    "measurements": (
        lambda attributes: attributes.update(
            measurements={
                str(i): {"group": f"measurements/{i}", "metrics": []}
                for i in range(MAX_MEASUREMENTS + 1)
            }
        ),
        f"measurements: expected at most {MAX_MEASUREMENTS}, got",
    ),
    "tensors": (many_tensors, f"names: tensors: expected at most {MAX_TENSORS}, got"),
    "basis": (set_spec(basis=10**9), f"basis: expected at most {MAX_BASIS}, got 10"),
    "dimensions": (
        set_spec(shapes=[[1] * 33, [7]]),
        f"shapes: dimensions: expected at most {MAX_DIMENSIONS}, got 33",
    ),
    "hidden size": (
        set_spec(shapes=[[0, 10**30], [7]]),
        f"elements in a dimension: expected at most {MAX_SIZE}, got 10+",
    ),
    "size": (
        set_spec(shapes=[[2**34], [2**34]]),
        r"codes: shape: expected \[10, 34359738368\], got \[10, 4096\]",
    ),
    "more than fits": (
        set_spec(shapes=[[2**35], [7]]),
        f"shapes: expected 1 to {MAX_SIZE} elements in total, got 34359739392",
    ),
    "nothing": (set_spec(shapes=[[0], [0]]), "elements in total, got 0"),
    "exact": (
        set_spec(exact=True, shapes=[[2**30], [7]]),
        "gradient: a chunk takes 4294971392 bytes, expected at most 1073741824",
    ),
    "metrics": (
        lambda attributes: attributes.update(metrics=["epoch", "grad_sq"]),
        r"metrics: \['epoch', 'grad_sq'\] are names of tables or coordinates",
    ),
    "path": (set_snapshot("../../secret"), "snapshots: expected an object"),
    "other path": (set_snapshot("snapshots/../../x"), "snapshots: expected an object"),
    "absolute": (set_snapshot("/etc/passwd"), "snapshots: expected an object"),
}


@pytest.mark.parametrize(("edit", "message"), ABSURD.values(), ids=ABSURD)
def test_impossible_metadata_is_refused(
    path: Path, tmp_path: Path, edit: Any, message: str
):
    copy = tmp_path / "run.zarr"
    shutil.copytree(path, copy)
    change_root_of(copy, lambda attributes, _arrays: edit(attributes))
    with bounded_memory(), pytest.raises(SchemaError, match=message):
        open_run(copy)


@pytest.mark.parametrize("n_steps", [10**6 * 40, 2**31, 2**40])
def test_steps_without_chunks_are_refused(path: Path, tmp_path: Path, n_steps: int):
    copy = tmp_path / "run.zarr"
    shutil.copytree(path, copy)

    def grow(_attributes: Any, arrays: dict[str, Any]) -> None:
        for document in arrays.values():
            if document.get("dimension_names", ["none"])[0] == "step":
                document["shape"][0] = n_steps

    change_root_of(copy, grow)
    assert 4 * n_steps > MAX_UNCHECKED_BYTES
    message = r"epoch: (expected \d+ chunks, found 1|shape: expected)"
    with bounded_memory(), pytest.raises(SchemaError, match=message):
        open_run(copy)


def test_measurements_without_chunks_are_refused(path: Path, tmp_path: Path):
    copy = tmp_path / "run.zarr"
    shutil.copytree(path, copy)

    def grow(_attributes: Any, arrays: dict[str, Any]) -> None:
        for name, document in arrays.items():
            if name.startswith("measurements/0/"):
                document["shape"][0] = 10**8

    change_root_of(copy, grow)
    message = r"measurements/0/\w+: expected \d+ chunks, found 1"
    with bounded_memory(), pytest.raises(SchemaError, match=message):
        open_run(copy)


def test_a_linked_root_document_is_refused(path: Path, tmp_path: Path):
    copy = tmp_path / "run.zarr"
    copy.mkdir()
    (copy / "zarr.json").symlink_to(path / "zarr.json")
    with pytest.raises(SchemaError, match=r"zarr\.json leads through a link"):
        open_run(copy)


def test_a_linked_lock_is_left_alone(path: Path, tmp_path: Path):
    copy = tmp_path / "run.zarr"
    shutil.copytree(path, copy)
    (tmp_path / "other").write_text("text")
    (copy / ".lock").symlink_to(tmp_path / "other")
    assert not open_run(copy).stored.is_written
    assert (tmp_path / "other").read_text() == "text"


def test_a_store_may_be_linked(path: Path, tmp_path: Path):
    link = tmp_path / "link.zarr"
    link.symlink_to(path)
    xr.testing.assert_equal(open_run(link).steps.load(), open_run(path).steps.load())
    assert open_run(link).stored.anchors.decode(9, slice(0, SIZE)).any()
