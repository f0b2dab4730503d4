"""Test that committed values read back, and that unfinished commits are invisible."""

import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore

from trajstore.format import checks as checks_module
from trajstore.format.arrays import ITEM_SIZE, ArraySpec, Code, StoredArray
from trajstore.format.checks import CheckList, RootChecks, n_columns
from trajstore.store.chunks import ChunkChecks
from trajstore.store.commit import Committer
from trajstore.store.event_loop import EventLoop

Array = npt.NDArray[Any]
State = dict[str, Array]

CODES: Sequence[Code] = ("none", "fast", "dense")


def rows_array(
    dtype: str = "float64",
    inner: tuple[int, ...] = (2,),
    *,
    rows: int = 3,
    code: Code = "dense",
) -> ArraySpec:
    return ArraySpec(
        dims=("step", *(f"dim_{i}" for i in range(len(inner)))),
        dtype=dtype,
        inner=inner,
        chunk=(rows, *inner),
        code=code,
    )


def numbers(n: int, *inner: int, start: float = 0) -> Array:
    """Return `n` rows of distinct numbers."""
    size = int(np.prod(inner))
    return start + np.arange(n * size, dtype=np.float64).reshape(n, *inner)


LOOP = EventLoop()


@pytest.fixture(scope="module", autouse=True)
def _small_segments() -> Iterator[None]:
    """Let a few checks fill a segment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks_module, "SEGMENT", 2)
        yield


@pytest.fixture(scope="module", autouse=True)
def _close_loop() -> Iterator[None]:
    yield
    LOOP.close()


def commits_at(path: Path) -> Committer:
    path.mkdir()
    return Committer(LocalStore(path), LOOP)


def open_root(path: Path) -> zarr.Group:
    return zarr.open_group(path, mode="r", use_consolidated=True)


def read(path: Path) -> State:
    """Read all arrays, and compare all chunks with their checks."""
    root = open_root(path)
    members = root.members(max_depth=None)
    arrays = {k: v for k, v in members if isinstance(v, zarr.Array)}
    values = {k: np.asarray(v[...]) for k, v in arrays.items()}
    stored = {
        name: StoredArray(
            ArraySpec(
                dims=(),
                dtype=str(array.dtype),
                inner=array.shape[1:],
                chunk=array.chunks,
                code="none",
            ),
            array.shape[0],
        )
        for name, array in arrays.items()
    }
    texts, pending = (root.attrs.get(k, {}) for k in ("checks", "pending_checks"))
    checks = RootChecks(stored, texts, pending)  # type: ignore[arg-type]
    for name, array in arrays.items():
        if (known := checks.of(name)) is not None and array.size:
            load = lambda key: (path / key).read_bytes()
            listed = CheckList(
                name, load, n_last=n_columns(known.array.spec), levels=known.open
            )
            of_chunks = ChunkChecks(array, listed, known.pending.tolist(), {})
            of_chunks.compare(tuple(slice(0, n) for n in array.shape), values[name])
            assert not of_chunks.lost
    return values


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name, strict=True)


def random_values(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> Array:
    """Return random values of a type, including NaN and infinities."""
    if np.dtype(dtype).kind != "f":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    values = rng.normal(size=shape).astype(dtype)
    special = np.array([np.nan, np.inf, -np.inf, -0.0], dtype)
    return np.where(rng.random(shape) < 0.2, rng.choice(special, shape), values)


@settings(max_examples=40)
@given(
    dtype=st.sampled_from(sorted(ITEM_SIZE)),
    inner=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    rows=st.sampled_from([1, 2, 4]),
    code=st.sampled_from(CODES),
    commits=st.lists(st.lists(st.integers(0, 6), max_size=3), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_rows_read_back_as_they_were_written(
    dtype: str,
    inner: tuple[int, ...],
    rows: int,
    code: Code,
    commits: list[list[int]],
    seed: int,
):
    rng = np.random.default_rng(seed)
    expected = np.empty((0, *inner), dtype)
    with tempfile.TemporaryDirectory() as directory:
        store = commits_at(Path(directory) / "store")
        store.declare({"x": rows_array(dtype, inner, rows=rows, code=code)})
        for batches in commits:
            for n in batches:
                new = random_values(rng, (n, *inner), dtype)
                store.append({"x": new})
                expected = np.concatenate([expected, new])
            store.commit({})
            found = read(Path(directory) / "store")["x"]
            np.testing.assert_array_equal(found, expected, strict=True)
            # Comparing bytes also compares the signs of zeros and NaN.
            assert found.tobytes() == expected.tobytes()


def test_attributes_equal_those_of_the_last_commit(tmp_path: Path):
    store = commits_at(tmp_path / "store")
    store.commit({"a": 1, "b": [2]})
    store.commit({"a": "later"})
    attributes = open_root(tmp_path / "store").attrs.asdict()
    assert len(attributes.pop("checksum")) == 8  # type: ignore[arg-type]
    assert attributes == {"a": "later", "checks": {}}


def test_nothing_is_visible_before_a_commit(tmp_path: Path):
    store = commits_at(tmp_path / "store")
    store.declare({"x": rows_array()})
    store.commit({})
    store.append({"x": numbers(4, 2)})
    store.write_vector(
        "v", rows_array("float32", ()), 4, np.ones(4, np.float32).__getitem__
    )
    assert_same(read(tmp_path / "store"), {"x": np.empty((0, 2))})


def test_large_rows_and_vectors_read_back(tmp_path: Path):
    store = commits_at(tmp_path / "store")
    store.declare({"below/large": rows_array(inner=(5,), rows=1, code="none")})
    vector = numbers(7)
    for row in numbers(3, 5):
        store.append_large("below/large", row)
    store.write_vector(
        "below/it/v", rows_array(inner=(), rows=4), len(vector), vector.__getitem__
    )
    store.commit({})
    expected = {"below/large": numbers(3, 5), "below/it/v": vector}
    assert_same(read(tmp_path / "store"), expected)


@pytest.mark.parametrize("n_rows", range(1, 8))
@pytest.mark.parametrize("committed_before", [True, False])
def test_only_named_columns_of_the_last_row_are_amended(
    tmp_path: Path, n_rows: int, committed_before: bool
):
    store = commits_at(tmp_path / "store")
    store.declare({"x": rows_array(inner=(3,))})
    store.append({"x": numbers(n_rows, 3)})
    if committed_before:
        store.commit({})
    store.amend_last("x", {2: -1.0, 0: np.nan})
    store.append({"x": numbers(2, 3, start=100)})
    store.amend_last("x", {1: -2.0})
    store.commit({})
    expected = np.concatenate([numbers(n_rows, 3), numbers(2, 3, start=100)])
    expected[n_rows - 1, [2, 0]] = [-1, np.nan]
    expected[-1, 1] = -2
    assert_same(read(tmp_path / "store"), {"x": expected})


@pytest.mark.parametrize("n_before", range(8))
def test_columns_added_later_read_as_nan_before(tmp_path: Path, n_before: int):
    store = commits_at(tmp_path / "store")
    store.declare({"x": rows_array(inner=(2,))})
    store.append({"x": numbers(n_before, 2)})
    store.commit({})
    store.widen("x", 4)
    store.append({"x": numbers(2, 4, start=100)})
    store.commit({})
    expected = np.full((n_before + 2, 4), np.nan)
    expected[:n_before, :2] = numbers(n_before, 2)
    expected[n_before:] = numbers(2, 4, start=100)
    assert_same(read(tmp_path / "store"), {"x": expected})


def test_no_chunk_is_missing_where_columns_were_added(tmp_path: Path):
    # Readers treat a missing chunk as damage, even if its fill value is NaN.
    store = commits_at(tmp_path / "store")
    store.declare({"x": rows_array(rows=2)})
    store.append({"x": numbers(7, 2)})
    store.commit({})
    for columns in (4, 6):
        store.widen("x", columns)
    store.append({"x": numbers(1, 6)})
    store.commit({})
    chunks = (tmp_path / "store" / "x" / "c").glob("*/*")
    found = {tuple(map(int, chunk.parts[-2:])) for chunk in chunks}
    assert found == set(itertools.product(range(4), range(3)))


@pytest.mark.parametrize("n_first", range(1, 8))
def test_a_reader_keeps_seeing_the_commit_that_it_opened(tmp_path: Path, n_first: int):
    store = commits_at(tmp_path / "store")
    store.declare({"x": rows_array(inner=(2,))})
    store.append({"x": numbers(n_first, 2)})
    store.commit({"at": "first"})
    opened = open_root(tmp_path / "store")
    store.append({"x": numbers(5, 2, start=100)})
    store.commit({"at": "second"})
    store.widen("x", 4)
    store.append({"x": numbers(5, 4, start=200)})
    store.commit({"at": "third"})
    array = opened["x"]
    assert isinstance(array, zarr.Array)
    np.testing.assert_array_equal(array[...], numbers(n_first, 2), strict=True)
    assert opened.attrs["at"] == "first"
    assert len(read(tmp_path / "store")["x"]) == n_first + 10


def write_history(path: Path, states: list[State]) -> None:
    """Write a store in several commits, and collect the expected state of each."""
    store = commits_at(path)
    x, y = np.empty((0, 2)), np.empty((0,), np.int32)
    store.declare({"x": rows_array(), "below/y": rows_array("int32", (), rows=2)})
    states.append({"x": x, "below/y": y})
    store.commit({"n": 0})

    x, y = numbers(4, 2), np.arange(3, dtype=np.int32)
    store.append({"x": x, "below/y": y})
    states.append({"x": x, "below/y": y})
    store.commit({"n": 1})

    x = np.concatenate([x, numbers(4, 2, start=100)])
    store.append({"x": x[4:]})
    vector = numbers(5)
    store.write_vector("v", rows_array(inner=()), len(vector), vector.__getitem__)
    states.append({"x": x, "below/y": y, "v": vector})
    store.commit({"n": 2})

    store.widen("x", 4)
    x = np.concatenate([np.hstack([x, np.full_like(x, np.nan)]), numbers(3, 4)])
    store.append({"x": x[8:]})
    states.append({"x": x, "below/y": y, "v": vector})
    store.commit({"n": 3})

    x = x.copy()
    x[-1, 3] = -1
    store.amend_last("x", {3: -1.0})
    store.write_vector(
        "final", rows_array(inner=()), len(vector), (-vector).__getitem__
    )
    states.append({"x": x, "below/y": y, "v": vector, "final": -vector})
    store.commit({"n": 4})


class Killed(BaseException):
    """An exception that stands for the end of the process."""


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that simulates a kill after a number of writes."""
    whole = LocalStore.set

    def arm(n_operations: int) -> None:
        count = itertools.count()

        async def set_or_die(self: LocalStore, *args: Any, **kwargs: Any) -> None:
            if next(count) >= n_operations:
                raise Killed
            await whole(self, *args, **kwargs)

        monkeypatch.setattr(LocalStore, "set", set_or_die)

    return arm


def test_a_write_killed_anywhere_leaves_a_readable_prefix(
    tmp_path: Path, kill_after: Callable[[int], None]
):
    seen = []
    for n_operations in itertools.count():
        path, states = tmp_path / f"{n_operations}", list[State]()
        kill_after(n_operations)
        try:
            write_history(path, states)
        except Killed:
            if not (path / "zarr.json").exists():
                assert len(states) == 1  # killed in the first commit
                continue
        n = open_root(path).attrs["n"]
        assert isinstance(n, int)
        seen.append(n)
        expected = states[n]
        if n == 3 and len(states) == 5:
            # The last row may already be amended; everything else is unchanged.
            found = read(path)
            assert found["x"][-1, 3] in {expected["x"][-1, 3], -1}
            found["x"][-1, 3] = expected["x"][-1, 3]
            assert_same(found, expected)
        else:
            assert_same(read(path), expected)
        if n == 4:
            break
    # After several kills, each commit but the last was the newest.
    assert seen == sorted(seen)
    assert min(seen.count(n) for n in range(4)) >= 3


@pytest.fixture
def written_keys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which all written keys are added."""
    keys: list[str] = []
    whole = LocalStore.set

    async def noting(self: LocalStore, key: str, *args: Any, **kwargs: Any) -> None:
        keys.append(key)
        await whole(self, key, *args, **kwargs)

    monkeypatch.setattr(LocalStore, "set", noting)
    return keys


def test_chunks_come_before_metadata_and_the_root_is_last(
    tmp_path: Path, written_keys: list[str]
):
    write_history(tmp_path / "store", [])
    keys = written_keys
    roots = [i for i, key in enumerate(keys) if key == "zarr.json"]
    # Before the last row is amended, the root document also permits the amended row.
    assert len(roots) == 6
    for start, stop in itertools.pairwise([-1, *roots]):
        is_metadata = [key.endswith("zarr.json") for key in keys[start + 1 : stop]]
        assert is_metadata == sorted(is_metadata)
    assert roots[-1] == len(keys) - 1


def test_a_commit_writes_only_changed_chunks(tmp_path: Path, written_keys: list[str]):
    store = commits_at(tmp_path / "store")
    store.declare({"x": rows_array(rows=3), "still": rows_array(rows=3)})
    store.append({"x": numbers(7, 2), "still": numbers(2, 2)})
    store.commit({})
    written_keys.clear()
    store.append({"x": numbers(1, 2)})
    store.commit({})
    # The only changed chunk is the third, which grew from one row to two.
    assert written_keys == ["x/c/2/0", "x/zarr.json", "zarr.json"]
    written_keys.clear()
    store.commit({})
    assert written_keys == ["zarr.json"]


def test_the_metadata_of_arrays_agree_with_the_root(tmp_path: Path):
    path = tmp_path / "store"
    write_history(path, [])
    root = json.loads((path / "zarr.json").read_text())
    documents = root["consolidated_metadata"]["metadata"]
    assert sorted(documents) == ["below", "below/y", "final", "v", "x"]
    for name, document in documents.items():
        assert json.loads((path / name / "zarr.json").read_text()) == document


@pytest.mark.parametrize("n_kept", range(15))
def test_rewound_rows_have_checks(tmp_path: Path, n_kept: int):
    """A second committer continues a store, rewinds it and appends."""
    path, spec = tmp_path / "store", rows_array(inner=(4,))
    spec = replace(spec, chunk=(3, 2))
    store = commits_at(path)
    store.declare({"x": spec})
    store.append({"x": numbers(14, 4)})
    store.commit({})
    again = store_at(path, spec, 14)
    again.rewind({"x": n_kept})
    again.commit({})
    assert_same(read(path), {"x": numbers(14, 4)[:n_kept]})
    again.append({"x": numbers(5, 4, start=100)})
    again.commit({})
    expected = np.concatenate([numbers(14, 4)[:n_kept], numbers(5, 4, start=100)])
    assert_same(read(path), {"x": expected})
    assert np.array_equal(again.read("x", slice(1, n_kept + 4)), expected[1:-1])


def test_rows_of_another_place_are_not_continued(tmp_path: Path):
    path, spec = tmp_path / "store", rows_array()
    store = commits_at(path)
    store.declare({"x": spec})
    store.append({"x": numbers(8, 2)})
    store.commit({})
    shutil.copy(path / "x/c/0/0", path / "x/c/2/0")
    with pytest.raises(
        ValueError, match=r"x/c/2/0 is not the chunk that was committed"
    ):
        store_at(path, spec, 8).read("x", slice(0, 8))


def store_at(path: Path, spec: ArraySpec, n: int) -> Committer:
    root = json.loads((path / "zarr.json").read_text())["attributes"]
    store = Committer(LocalStore(path), LOOP)
    checks = RootChecks({"x": StoredArray(spec, n)}, root["checks"], {})
    store.continue_from({"x": spec}, {"x": n}, checks)
    return store


def test_appending_does_not_read_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = LocalStore.get

    async def refuse(self: LocalStore, key: str, *args: Any) -> Any:
        # Lists of checks are read when columns are added.
        assert "/checks/" in key, "the writer has read from the store"
        return await whole(self, key, *args)

    monkeypatch.setattr(LocalStore, "get", refuse)
    states: list[State] = []
    write_history(tmp_path / "store", states)
    monkeypatch.undo()
    assert_same(read(tmp_path / "store"), states[-1])


@pytest.mark.parametrize("code", CODES)
def test_a_damaged_chunk_is_not_read(tmp_path: Path, code: Code):
    store = commits_at(tmp_path / "store")
    store.declare({"x": rows_array(code=code, rows=64)})
    store.append({"x": numbers(64, 2)})
    store.commit({})
    files = (tmp_path / "store" / "x" / "c").rglob("*")
    (chunk,) = [file for file in files if file.is_file()]
    whole = chunk.read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        chunk.write_bytes(damaged)
        with pytest.raises(ValueError, match="checksum do not match"):
            read(tmp_path / "store")
    chunk.write_bytes(whole)
    assert_same(read(tmp_path / "store"), {"x": numbers(64, 2)})
