"""Test that ``overwrite=True`` deletes trajectory stores, and nothing else."""

import os
import shutil
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from trajstore import Recorder, StoreLockedError, open_run
from trajstore.format.arrays import row_arrays, window_arrays
from trajstore.store.deletion import OWN_NAMES, remove_store


def record(path: Path, n_steps: int, **options: Any) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(path, model, optimizer, sketch_bits=64, probes=16, **options) as new:
        for _ in range(n_steps):
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
        new.snapshot("here")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "run.zarr"
    record(path, 3)
    return path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return the files and directories below a folder, without following links."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else None
        for path in folder.rglob("*")
    }


def test_a_cell_can_run_again(store: Path):
    (store.parent / "neighbour.txt").write_text("kept")
    before = open_run(store).stored.document.created
    record(store, 5, overwrite=True)
    run = open_run(store)
    assert (run.n_steps, run.status) == (5, "complete")
    assert run.stored.document.created != before
    assert {path.name for path in store.parent.iterdir()} == {
        "run.zarr",
        "neighbour.txt",
    }


def test_nothing_to_overwrite_is_no_error(tmp_path: Path):
    record(tmp_path / "new.zarr", 2, overwrite=True)
    assert open_run(tmp_path / "new.zarr").n_steps == 2


def test_a_damaged_store_is_overwritten(store: Path):
    document = (store / "zarr.json").read_bytes()
    (store / "zarr.json").write_bytes(document[: len(document) // 2])
    record(store, 4, overwrite=True)
    assert open_run(store).n_steps == 4


def add_note(store: Path, _: Path) -> None:
    (store / "notes.txt").write_text("mine")


def add_link(store: Path, outside: Path) -> None:
    (store / "references" / "elsewhere").symlink_to(outside)


def add_pipe(store: Path, _: Path) -> None:
    os.mkfifo(store / "scalars" / "pipe")


def add_socket(store: Path, _: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        before = Path.cwd()
        os.chdir(store)  # the path of a socket may have at most 108 bytes
        server.bind("final/s")
        os.chdir(before)


def replace_array_by_link(store: Path, outside: Path) -> None:
    shutil.rmtree(store / "tables")
    (store / "tables").symlink_to(outside)


def replace_store_by_link(store: Path, outside: Path) -> None:
    store.rename(outside / "real.zarr")
    store.symlink_to(outside / "real.zarr")


def replace_document_by_link(store: Path, outside: Path) -> None:
    (store / "zarr.json").rename(outside / "zarr.json")
    (store / "zarr.json").symlink_to(outside / "zarr.json")


def replace_by_other_zarr(store: Path, _: Path) -> None:
    (store / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')


def replace_by_file(store: Path, _: Path) -> None:
    document = (store / "zarr.json").read_bytes()
    shutil.rmtree(store)
    store.write_bytes(document)


def replace_by_empty_directory(store: Path, _: Path) -> None:
    shutil.rmtree(store)
    store.mkdir()


@pytest.mark.parametrize(
    "change",
    [
        *(add_note, add_link, add_pipe, add_socket, replace_array_by_link),
        *(replace_store_by_link, replace_document_by_link, replace_by_other_zarr),
        *(replace_by_file, replace_by_empty_directory),
    ],
    ids=lambda change: change.__name__,
)
def test_anything_else_is_refused_and_kept(
    store: Path, tmp_path: Path, change: Callable[[Path, Path], None]
):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("kept")
    change(store, outside)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="overwrite=True d"):
        record(store, 1, overwrite=True)
    assert contents(tmp_path) == before


def test_a_store_that_is_being_recorded_is_kept(store: Path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = store.parent / "open.zarr"
    with Recorder(path, model, optimizer):
        with pytest.raises(StoreLockedError, match="Close that recorder"):
            remove_store(path)
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert open_run(path).n_steps == 1


def test_options_that_contradict_each_other_are_refused(store: Path):
    with pytest.raises(ValueError, match="give only one"):
        record(store, 1, overwrite=True, resume=True, step=0)
    assert open_run(store).n_steps == 3


def test_remote_stores_are_refused():
    with pytest.raises(NotImplementedError, match="is remote"):
        remove_store("s3://bucket/run.zarr")


@pytest.mark.parametrize("exact", [False, True])
def test_every_array_of_a_store_is_known(
    tmp_path: Path, train_small: Callable[..., Any], exact: bool
):
    path = tmp_path / "run.zarr"
    train_small(partial(Recorder, path), exact=exact, samples=4)
    spec = open_run(path).spec
    size = open_run(path).layout.size
    arrays = {**row_arrays(spec, n_metrics=1), **window_arrays(spec, size=size)}
    assert {name.partition("/")[0] for name in arrays} <= OWN_NAMES
    remove_store(path)
    assert not path.exists()
