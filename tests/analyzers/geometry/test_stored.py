"""Test ``analyzers.geometry.stored``."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from numcodecs.abc import Codec  # type: ignore[import-untyped]
from numcodecs.registry import register_codec  # type: ignore[import-untyped]

import analyzers
import trajstore
from analyzers._engine.tasks import NAMES
from analyzers.geometry import stored as results
from trajstore.reading.results import results_location
from trajstore.reading.run import Run
from trajstore.reading.verify import problems
from trajstore.store.chunks import ChunkError

CHUNK = 8
"""Number of steps in a chunk of the result; the run has 60 steps."""


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["analyzers.geometry.path_geometry"]
    monkeypatch.setattr(module, "RESULT_ROWS", (CHUNK, CHUNK))


@pytest.fixture
def run(example_run: Path, tmp_path: Path) -> Run:
    """A copy of the example run, because results are written next to the store."""
    return trajstore.open_run(shutil.copytree(example_run, tmp_path / "run.zarr"))


@pytest.fixture
def stored_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Indices of computed chunks; chunks are computed one after another in this thread."""
    chunks: list[int] = []

    def remembered(
        location: str, group: str, index: int, steps: slice, values: Any
    ) -> None:
        results_store_chunk(location, group, index, steps, values)
        chunks.append(index)

    results_store_chunk = results.store_chunk
    monkeypatch.setattr(results, "store_chunk", remembered)
    with dask.config.set(scheduler="synchronous"):
        yield chunks


@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
def test_stored_result_is_the_computed_one(run: Run, layers: bool):
    stored = analyzers.store_geometry(run, layers=layers)
    assert stored.gamma.chunks is not None
    computed = analyzers.path_geometry(run, layers=layers)
    xr.testing.assert_identical(stored.compute(), computed.compute())


def test_second_call_computes_nothing(run: Run, stored_chunks: list[int]):
    first = analyzers.store_geometry(run).compute()
    assert sorted(stored_chunks) == list(range(8))
    stored_chunks.clear()
    xr.testing.assert_identical(analyzers.store_geometry(run).compute(), first)
    assert stored_chunks == []


def interrupt_after(
    monkeypatch: pytest.MonkeyPatch, n: int, *, before_mark: bool
) -> None:
    """Interrupt an analysis, before or after it writes the data of a chunk."""
    store_chunk = results.store_chunk
    stored: list[int] = []

    def interrupted(location: str, group: str, i: int, steps: slice, v: Any) -> None:
        if len(stored) == n:
            if before_mark:
                monkeypatch.setattr(results, "DONE", "progress/absent")
                with pytest.raises(KeyError, match="progress/absent"):
                    store_chunk(location, group, i, steps, np.zeros_like(v))
                monkeypatch.setattr(results, "DONE", "progress/checks")
            raise KeyboardInterrupt("by the test")
        store_chunk(location, group, i, steps, v)
        stored.append(i)

    monkeypatch.setattr(results, "store_chunk", interrupted)


@pytest.mark.parametrize("before_mark", [False, True], ids=["between", "within"])
def test_interrupted_analysis_computes_only_missing_chunks(
    run: Run, stored_chunks: list[int], before_mark: bool
):
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 3, before_mark=before_mark)
        with pytest.raises(KeyboardInterrupt, match="by the test"):
            analyzers.store_geometry(run)
    assert len(stored_chunks) == 3
    done = list(stored_chunks)
    stored_chunks.clear()
    stored = analyzers.store_geometry(run)
    assert sorted(stored_chunks + done) == list(range(8))
    expected = analyzers.path_geometry(run)
    xr.testing.assert_identical(stored.compute(), expected.compute())


def test_given_arrays_are_distinguished(run: Run, stored_chunks: list[int]):
    final = run.stored.array("final")[:]
    for scale in (0.5, 2.0, 0.5):
        reference = run.layout.unflatten(np.float32(scale) * final)
        stored = analyzers.store_geometry(run, reference=reference)
        expected = analyzers.path_geometry(run, reference=reference)
        xr.testing.assert_identical(stored.compute(), expected.compute())
    # Results for different arrays share a group, so they replace each other.
    assert sorted(stored_chunks) == sorted(3 * list(range(8)))


def test_new_version_computes_again(
    run: Run, stored_chunks: list[int], monkeypatch: pytest.MonkeyPatch
):
    analyzers.store_geometry(run)
    stored_chunks.clear()
    monkeypatch.setattr(
        sys.modules["analyzers.geometry.path_geometry"], "ESTIMATOR", -1
    )
    analyzers.store_geometry(run)
    assert sorted(stored_chunks) == list(range(8))


def test_run_that_has_grown_is_computed_again(
    tmp_path: Path, train_small: Callable[..., Any]
):
    from trajstore import Recorder

    path, early = tmp_path / "run.zarr", []

    @contextmanager
    def observe(*args: Any, **options: Any) -> Any:
        with Recorder(path, *args, sketch_bits=256, probes=64, **options) as recorder:
            yield recorder
            recorder.flush()
            run = trajstore.open_run(path)
            early.append(analyzers.store_geometry(run, reference=1).compute())

    train_small(observe)
    run = trajstore.open_run(path)
    late = analyzers.store_geometry(run, reference=1)
    expected = analyzers.path_geometry(run, reference=1).compute()
    assert early[0].attrs["status"] == "running"
    xr.testing.assert_identical(late.compute(), expected)


def test_half_removed_result_does_not_look_complete(
    run: Run, stored_chunks: list[int], monkeypatch: pytest.MonkeyPatch
):
    """The analysis is killed just before it replaces a result for other arrays."""
    final = run.stored.array("final")[:]
    half, double = (run.layout.unflatten(np.float32(s) * final) for s in (0.5, 2.0))
    analyzers.store_geometry(run, reference=half)
    stored_chunks.clear()

    def killed(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt("by the test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xr.Dataset, "to_zarr", killed)
        with pytest.raises(KeyboardInterrupt, match="by the test"):
            analyzers.store_geometry(run, reference=double)
    analyzers.store_geometry(run, reference=half)
    assert sorted(stored_chunks) == list(range(8))


def test_run_without_steps_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Run, "n_steps", 0)
    with pytest.raises(ValueError, match=r"run\.zarr holds no steps yet"):
        analyzers.store_geometry(run)


def test_tasks_are_built_once(run: Run, monkeypatch: pytest.MonkeyPatch):
    module = sys.modules["analyzers.geometry.path_geometry"]
    built = Mock(wraps=module.geometry_tasks)
    monkeypatch.setattr(module, "geometry_tasks", built)
    analyzers.store_geometry(run)
    assert built.call_count == 1


class Spy(Codec):  # type: ignore[misc]
    """A codec that notes its calls; its place in an attack would be taken by pickle."""

    codec_id = "trajstore-test-spy"
    calls: ClassVar[list[str]] = []

    def encode(self, buf: Any) -> Any:
        return buf

    def decode(self, buf: Any, out: Any = None) -> Any:
        self.calls.append("decode")
        return buf if out is None else out


def test_foreign_codecs_of_zarr_v2_are_not_called(run: Run, stored_chunks: list[int]):
    """The codecs of Zarr v2 execute stored code, for example pickle."""
    register_codec(Spy)
    expected = analyzers.store_geometry(run).compute()
    location = Path(results_location(run))
    foreign = xr.open_zarr(location, group="final", consolidated=False).load()
    shutil.rmtree(location)
    encoding = {name: {"compressors": [Spy()]} for name in foreign}
    foreign.drop_encoding().to_zarr(
        location, group="final", zarr_format=2, encoding=encoding, consolidated=False
    )
    root: Any = zarr.open_group(location, zarr_format=2, use_consolidated=False)
    root["final"].create_array("progress/done", data=np.ones(8, bool), chunks=(1,))
    assert root["final"].attrs["computed_from"] == expected.attrs["computed_from"]
    stored_chunks.clear()
    Spy.calls.clear()
    xr.testing.assert_identical(analyzers.store_geometry(run).compute(), expected)
    assert sorted(stored_chunks) == list(range(8))
    assert Spy.calls == []


@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
def test_other_documents_are_computed_again(run: Run, layers: bool):
    expected = analyzers.store_geometry(run, layers=layers).compute()
    group = Path(results_location(run), results.result_group(expected))
    for change in ({"shape": [1 << 40]}, {"codecs": [{"name": "pickle"}]}):
        file = group / "gamma/zarr.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.warns(
            UserWarning, match="is not valid, and is computed again: .*gam"
        ):
            stored = analyzers.store_geometry(run, layers=layers)
        xr.testing.assert_identical(stored.compute(), expected)


@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
def test_missing_chunks_are_computed_again(run: Run, layers: bool):
    expected = analyzers.store_geometry(run, layers=layers).compute()
    group = Path(results_location(run), results.result_group(expected))
    chunk = group / "rsi/c/3" / ("0" if layers else "")
    chunk.unlink()
    with pytest.warns(UserWarning, match="Chunks of the stored result final.* are mis"):
        stored = analyzers.store_geometry(run, layers=layers)
    xr.testing.assert_identical(stored.compute(), expected)
    chunk.unlink()
    with pytest.raises(
        ChunkError, match=r"rsi/c/3.* is missing; to compute .*, delete /"
    ):
        stored.compute()


def test_chunks_of_nan_are_stored(run: Run):
    """Otherwise a missing chunk would look like a run that diverged."""
    analyzers.store_geometry(run)
    location = results_location(run)
    file = Path(location, "final/gamma/c/0")
    file.unlink()
    values = np.full((len(NAMES), CHUNK), np.nan)
    results.store_chunk(location, "final", 0, slice(0, CHUNK), values)
    assert file.exists()
    assert np.isnan(analyzers.store_geometry(run).gamma[:CHUNK].values).all()


def test_flipped_bits_of_a_result_are_noticed(run: Run):
    stored = analyzers.store_geometry(run)
    file = Path(results_location(run), "final/gamma/c/2")
    intact = file.read_bytes()
    for i in range(0, 8 * len(intact), 17):
        data = bytearray(intact)
        data[i // 8] ^= 1 << i % 8
        file.write_bytes(data)
        with (
            dask.config.set(scheduler="synchronous"),
            pytest.raises(
                ChunkError, match=r"gamma/c/2 .*; to compute the result again, delete /"
            ),
        ):
            stored.gamma[2 * CHUNK : 3 * CHUNK].compute()
    with pytest.raises(ChunkError, match=r"gamma/c/2"):
        analyzers.store_geometry(run).compute()
    shutil.rmtree(file.parents[1])
    computed = analyzers.path_geometry(run).compute()
    xr.testing.assert_identical(analyzers.store_geometry(run).compute(), computed)


def test_results_of_earlier_versions_are_computed_again(
    run: Run, stored_chunks: list[int]
):
    """They have marks of complete chunks, but no checks."""
    expected = analyzers.store_geometry(run).compute()
    location = results_location(run)
    shutil.rmtree(Path(location, "final/progress"))
    root: Any = zarr.open_group(location, use_consolidated=False)
    root.create_array("final/progress/done", data=np.ones(8, bool), chunks=(1,))
    stored_chunks.clear()
    xr.testing.assert_identical(analyzers.store_geometry(run).compute(), expected)
    assert sorted(stored_chunks) == list(range(8))


FALSIFIED = {
    "another chunk": ("gamma/c/2", "gamma/c/5"),
    "another quantity": ("gamma/c/2", "rsi/c/2"),
    "another check": ("progress/checks/c/2/0", "progress/checks/c/5/0"),
}


@pytest.mark.parametrize(("key", "source"), FALSIFIED.values(), ids=FALSIFIED)
def test_chunks_of_a_result_belong_to_their_places(run: Run, key: str, source: str):
    analyzers.store_geometry(run).compute()
    group = Path(results_location(run), "final")
    assert list(problems(run)) == []
    shutil.copy(group / source, group / key)
    found = [problem.place for problem in problems(run)]
    assert "results: final/gamma/c/2" in found
    stored = analyzers.store_geometry(run)
    stored.gamma[: 2 * CHUNK].compute()
    with pytest.raises(ChunkError, match=r"gamma/c/2 is not the part of this result"):
        stored.gamma.compute()


def test_chunks_of_another_run_are_noticed(run: Run, tmp_path: Path):
    analyzers.store_geometry(run).compute()
    group = Path(results_location(run), "final")
    shutil.copytree(group, tmp_path / "before")
    analyzers.store_geometry(run, weight_decay=0.1)
    shutil.rmtree(group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["analyzers.geometry.path_geometry"], "ESTIMATOR", -1)
        analyzers.store_geometry(run).compute()
        for name in ("gamma/c/2", "progress/checks/c/2/0"):
            shutil.copy(tmp_path / "before" / name, group / name)
        with pytest.raises(ChunkError, match="is not the part of this result"):
            analyzers.store_geometry(run).gamma.compute()


def test_a_result_is_not_written_through_links(run: Run, tmp_path: Path):
    analyzers.store_geometry(run)
    group, outside = Path(results_location(run), "final"), tmp_path / "outside"
    (group / "progress").rename(outside)
    (group / "progress").symlink_to(outside)
    before = sorted(outside.rglob("*"))
    with (
        pytest.warns(UserWarning, match="leads through a link"),
        pytest.raises(
            ValueError, match=r"progress/checks leads through a link.* Remove it"
        ),
    ):
        analyzers.store_geometry(run)
    assert sorted(outside.rglob("*")) == before
