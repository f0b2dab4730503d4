"""Test that runs in object storage are read, verified and sized like local runs."""

import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from tests.trajstore.handmade import SIZE, write_run
from trajstore import open_run
from trajstore.cli import main as cli
from trajstore.reading.verify import SERVES, problems
from trajstore.store import lease
from trajstore.store.holder import WRITER
from trajstore.store.lease import LEASE_SECONDS
from trajstore.store.location import open_store

obstore = pytest.importorskip("obstore")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("local") / "run.zarr"
    write_run(path, n_steps=10)
    return path


def storage(location: str) -> Any:
    store: Any = open_store(location)
    return store.store


def upload(path: Path, location: str) -> str:
    for file in path.rglob("*"):
        if file.is_file():
            key = file.relative_to(path).as_posix()
            obstore.put(storage(location), key, file.read_bytes())
    return location


@pytest.fixture
def remote(bucket: str, local: Path, request: pytest.FixtureRequest) -> str:
    return upload(local, f"{bucket}/{request.node.name}/run.zarr")


def test_a_remote_run_reads_like_a_local_one(remote: str, local: Path):
    far, near = open_run(remote + "/"), open_run(local)
    assert far.location == remote
    xr.testing.assert_equal(far.steps.load(), near.steps.load())
    xr.testing.assert_identical(far.windows, near.windows)
    every = slice(0, SIZE)
    np.testing.assert_array_equal(
        far.stored.anchors.decode(9, every), near.stored.anchors.decode(9, every)
    )
    np.testing.assert_array_equal(
        far.stored.vector("final", every), near.stored.vector("final", every)
    )
    assert pickle.loads(pickle.dumps(far)).n_steps == 10


def test_a_missing_remote_store_is_named(bucket: str):
    message = r"no trajectory store at s3://runs/none\.zarr: no zarr\.json"
    with pytest.raises(FileNotFoundError, match=message):
        open_run(f"{bucket}/none.zarr")


def test_damage_of_a_remote_run_is_found(remote: str):
    obstore.delete(storage(remote), "references/codes/c/8/0")
    obstore.put(storage(remote), "epoch/c/0", b"")
    obstore.put(storage(remote), "tables/c/0/0/0", bytes(4 << 20))
    found = [(p.place, p.text, p.cost) for p in problems(open_run(remote))]
    assert found == [
        ("epoch/c/0", "has only 0 bytes", f"epoch of steps 0-9 ({SERVES['epoch']})"),
        (
            "tables/c/0/0/0",
            "is longer than the 786452 bytes it may have",
            f"tables of steps 0-9 ({SERVES['tables']})",
        ),
        ("references/codes/c/8/0", "is missing", "steps 8-9"),
    ]


def test_info_sizes_a_remote_run(
    remote: str,
    local: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("COLUMNS", "300")
    texts = []
    for location in (remote, str(local)):
        monkeypatch.setattr("sys.argv", ["traj-store", "info", location])
        cli.main()
        texts.append(capsys.readouterr().out.replace(location, ""))
    assert texts[0].split() == texts[1].split()
    assert "anchors" in texts[0]


# Whether a remote store has a writer


@pytest.fixture
def open_remote(bucket: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Return the location of a run that was not closed."""
    write_run(tmp_path / "run.zarr", n_steps=2, status=None)
    return upload(tmp_path / "run.zarr", f"{bucket}/{request.node.name}/run.zarr")


def test_a_remote_run_without_a_writer_is_interrupted(open_remote: str):
    assert open_run(open_remote).status == "interrupted"


@pytest.mark.parametrize(
    ("age", "status"),
    [(0, "running"), (LEASE_SECONDS - 60, "running"), (LEASE_SECONDS, "interrupted")],
)
def test_the_lease_of_a_remote_writer_expires(
    open_remote: str, monkeypatch: pytest.MonkeyPatch, age: int, status: str
):
    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=age)

    obstore.put(storage(open_remote), WRITER, b'{"host": "a", "pid": 1}')
    monkeypatch.setattr(lease, "datetime", Later)
    assert open_run(open_remote).status == status


def test_fsspec_leases_expire_by_the_date_of_the_storage(tmp_path: Path):
    fsspec = pytest.importorskip("fsspec")
    write_run(tmp_path / "run.zarr", n_steps=2, status=None)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "run.zarr"), "/there/run.zarr", recursive=True)
    try:
        assert open_run("memory://there/run.zarr").status == "interrupted"
        for age, status in ((0, "running"), (LEASE_SECONDS, "interrupted")):
            memory.pipe("/there/run.zarr/.writer", b'{"host": "a", "pid": 1}')
            renewed = datetime.now(UTC) - timedelta(seconds=age)
            memory.store["/there/run.zarr/.writer"].created = renewed
            assert open_run("memory://there/run.zarr").status == status
        memory.pipe("/there/run.zarr/.writer", b"damaged")
        run = open_run("memory://there/run.zarr")
        assert run.status == "interrupted"
        assert run.steps["loss"].values.tolist() == [0, -1]
    finally:
        memory.rm("/there", recursive=True)
