"""Test that damaged chunks are not decoded, and missing chunks not read as zeros."""

import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import google_crc32c
import numpy as np
import pytest
from numcodecs import Blosc  # type: ignore[import-untyped]

from tests.trajstore.handmade import SIZE, SPEC, random_rows, random_window, write_run
from trajstore import open_run
from trajstore.format.checks import check_of
from trajstore.format.layout import BLOCK
from trajstore.format.run_spec import RunSpec
from trajstore.store.chunks import (
    ChunkChecks,
    ChunkError,
    chunk_key,
    chunks_of,
    read_part,
)
from trajstore.store.writer import Writer

PER_EPOCH: Final = 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.zarr"
    write_run(path, n_steps=10)
    return path


def with_checksum(data: bytes) -> bytes:
    checksum: int = google_crc32c.value(data)
    return data + checksum.to_bytes(4, "little")


def remove(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def make_huge(file: Path) -> None:
    """Make a sparse file of 1 TB."""
    os.truncate(file, 1 << 40)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-10] ^= 4
    file.write_bytes(bytes(data))


def pack_a_bomb(file: Path) -> None:
    """Store 4 MB of zeros in a few KB, with a correct checksum."""
    bomb = Blosc(cname="zstd", clevel=1).encode(np.zeros(4 << 20, np.uint8))
    file.write_bytes(with_checksum(bomb))


def claim_more(file: Path) -> None:
    """Claim 2 GB in the header, with a correct checksum."""
    data = bytearray(file.read_bytes()[:-4])
    data[4:8] = (2**31 - 1).to_bytes(4, "little")
    file.write_bytes(with_checksum(bytes(data)))


def claim_longer(file: Path) -> None:
    """Claim more packed bytes in the header than the chunk has."""
    data = bytearray(file.read_bytes()[:-4])
    data[12:16] = (len(data) + 1000).to_bytes(4, "little")
    file.write_bytes(with_checksum(bytes(data)))


def spoil_the_packing(file: Path) -> None:
    data = bytearray(file.read_bytes()[:-4])
    data[20:40] = bytes([255] * 20)
    file.write_bytes(with_checksum(bytes(data)))


def lead_out(file: Path) -> None:
    outside = file.parents[3] / "outside"
    file.rename(outside)
    file.symlink_to(outside)


def lead_a_directory_out(file: Path) -> None:
    outside = file.parents[3] / "outside"
    file.parent.rename(outside)
    file.parent.symlink_to(outside)


def make_a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


PACKED = {
    "missing": (remove, "is missing"),
    "empty": (empty, "has only 0 bytes"),
    "short": (shorten, "has a damaged header"),
    "huge": (make_huge, r"is longer than the \d+ bytes it may have"),
    "flipped": (flip_a_bit, "is damaged: Stored and computed checksum do not match"),
    "bomb": (pack_a_bomb, "claims to unpack to 4194304 bytes instead of "),
    "claim": (claim_more, "claims to unpack to 2147483647 bytes instead of "),
    "length": (claim_longer, "has a damaged header"),
    "spoilt": (spoil_the_packing, "is damaged: error during blosc decompression"),
    "link": (lead_out, "leads through a link"),
    "linked directory": (lead_a_directory_out, "leads through a link"),
    "pipe": (make_a_pipe, "is not a file"),
}

PLAIN = {
    "missing": (remove, "is missing"),
    "empty": (empty, "has 0 bytes instead of 16388"),
    "short": (shorten, "has 16387 bytes instead of 16388"),
    "huge": (make_huge, "is longer than the 16388 bytes it may have"),
    "flipped": (flip_a_bit, "is damaged: Stored and computed checksum do not match"),
}

CASES = [
    *(("epoch/c/0", *case) for case in PACKED.values()),
    *(("final/c/0", *case) for case in PLAIN.values()),
]


@pytest.mark.parametrize(("key", "damage", "reason"), CASES)
def test_a_damaged_chunk_is_an_error_with_a_reason(
    path: Path, key: str, damage: Callable[[Path], None], reason: str
):
    run = open_run(path)
    damage(path / key)
    array = run.stored.array(key.partition("/c/")[0])
    tracemalloc.start()
    try:
        with pytest.raises(
            (ValueError, RuntimeError), match=reason.replace("is damaged: ", "")
        ):
            _ = array[:]
        read = read_part(array, (slice(1, 3),))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    [error] = read.errors
    assert error.key == key
    assert error.reason.startswith(reason.partition(r"\d")[0])
    assert read.missing is not None
    assert read.missing.tolist() == [True, True]
    # A chunk of 8192 epochs has 32 KB, and a chunk of parameters has 16 KB.
    assert peak < 1 << 20


def test_an_error_survives_pickling():
    copy = pickle.loads(pickle.dumps(ChunkError("final/c/0", "is missing")))
    assert (copy.key, copy.reason) == ("final/c/0", "is missing")
    assert str(copy) == "chunk final/c/0 is missing"


def test_a_part_is_read_around_damaged_chunks(path: Path):
    run = open_run(path)
    codes = run.stored.array("references/codes")
    whole = codes[:]
    for window in (2, 5):
        remove(path / f"references/codes/c/{window}/0")
    read = read_part(codes, (slice(1, 7), slice(BLOCK, 3 * BLOCK)))
    assert [error.key for error in read.errors] == [
        "references/codes/c/2/0",
        "references/codes/c/5/0",
    ]
    lost = np.zeros((6, 2 * BLOCK), bool)
    lost[[1, 4]] = True
    np.testing.assert_array_equal(read.missing, lost)
    expected = np.where(lost, 0, whole[1:7, BLOCK : 3 * BLOCK])
    np.testing.assert_array_equal(read.values, expected)


def test_slices_of_chunks_cover_an_array(path: Path):
    array = open_run(path).stored.array("references/codes")
    places = list(chunks_of(array))
    assert len(places) == 10
    assert places[3] == (slice(3, 4), slice(0, SIZE))
    assert chunk_key(array, places[3]) == "references/codes/c/3/0"
    assert list(chunks_of(array, (slice(4, 4), slice(0, 5)))) == []


# The cost of damage in a run


def write_unknown_epochs(path: Path) -> None:
    """Write ten steps whose epochs cannot be recomputed from other arrays."""
    spec = RunSpec.from_json(SPEC.to_json() | {"steps_per_epoch": None})
    writer = Writer(path, spec)
    for c in range(10):
        writer.append_window(random_window(c))
    writer.steps.append(random_rows(0, 10), [{}] * 10)
    writer.commit()
    writer.close()


def expect(path: Path, key: str) -> Any:
    message = rf"^{path}: chunk {key} is missing; its values read as NaN\. See traj"
    return pytest.warns(UserWarning, match=message)


@pytest.mark.parametrize("name", ["epoch", "iteration", "window"])
def test_a_lost_coordinate_follows_from_the_others(path: Path, name: str):
    remove(path / name / "c/0")
    with expect(path, f"{name}/c/0"):
        steps = open_run(path).steps.load()
    np.testing.assert_array_equal(steps[name], random_rows(0, 10)[name])
    assert steps[name].dtype == np.int32


@pytest.mark.parametrize("name", ["epoch", "iteration"])
def test_epochs_that_cannot_be_recomputed_are_minus_one(tmp_path: Path, name: str):
    path = tmp_path / "other.zarr"
    write_unknown_epochs(path)
    remove(path / name / "c/0")
    with expect(path, f"{name}/c/0"):
        steps = open_run(path).steps
    assert steps[name].values.tolist() == [-1] * 10


def test_starts_of_windows_follow_from_the_steps(path: Path):
    whole = open_run(path).windows
    remove(path / "references/start/c/0")
    with expect(path, "references/start/c/0"):
        windows = open_run(path).windows
    np.testing.assert_array_equal(windows["start"], whole["start"])
    np.testing.assert_array_equal(windows["stop"], whole["stop"])


@pytest.mark.filterwarnings("ignore:.*read as NaN")
def test_windows_that_cannot_be_recomputed_are_an_error(path: Path):
    remove(path / "references/start/c/0")
    remove(path / "window/c/0")
    message = r"run\.zarr: chunks of both 'references/start' and 'window' are damaged"
    with pytest.raises(ValueError, match=message):
        _ = open_run(path).windows
    assert open_run(path).steps["window"].values.tolist() == [-1] * 10


@pytest.mark.parametrize("starts", [[1, 2], [0, 5, 3], [0, -(2**62)]])
def test_windows_that_go_backwards_are_an_error(tmp_path: Path, starts: list[int]):
    writer = Writer(tmp_path / "other.zarr", SPEC)
    for c, start in enumerate(starts):
        writer.append_window(random_window(c)._replace(start=start))
    writer.commit()
    writer.close()
    with pytest.raises(
        ValueError, match="start: expected steps that ascend from 0, got"
    ):
        _ = open_run(tmp_path / "other.zarr").windows


def test_a_damaged_anchor_costs_the_anchors_up_to_the_next_keyframe(tmp_path: Path):
    path = tmp_path / "other.zarr"
    write_run(path, n_steps=70)
    whole, run = open_run(path), open_run(path)
    remove(path / "references/codes/c/40/0")
    remove(path / "references/keyframes/c/2/0")
    every = slice(0, SIZE)
    with (
        expect(path, "references/codes/c/40/0"),
        expect(path, "references/keyframes/c/2/0"),
    ):
        found = [run.stored.anchors.decode(c, every) for c in range(70)]
    for c in range(70):
        if 40 <= c < 64 or c >= 64:
            assert np.isnan(found[c]).all()
        else:
            np.testing.assert_array_equal(
                found[c], whole.stored.anchors.decode(c, every)
            )


def test_lost_signs_are_distinguished_from_zeros(path: Path):
    run = open_run(path)
    assert not run.stored.is_missing("signs", slice(2, 9)).any()
    remove(path / "signs/c/0/0")
    run = open_run(path)
    with expect(path, "signs/c/0/0"):
        assert run.stored.is_missing("signs", slice(2, 9)).tolist() == [True] * 7
    assert not run.stored.rows("signs", slice(2, 9)).any()


def test_every_chunk_of_a_grid_is_compared_with_its_own_check():
    array: Any = SimpleNamespace(path="array", shape=(5, 7), chunks=(2, 3))
    values = np.arange(35).reshape(array.shape)
    known: Any = [check_of(values[chunk]) for chunk in chunks_of(array)]
    checks = ChunkChecks(array, known, [], {})
    checks.compare((slice(0, 5), slice(0, 7)), values)
    checks.compare((slice(2, 5), slice(3, 7)), values[2:, 3:])
    checks.compare((slice(4, 5), slice(6, 7)), values[4:, 6:])
    known[5], known[7] = known[7], known[5]
    with pytest.raises(ChunkError, match="array/c/1/2"):
        checks.compare((slice(2, 4), slice(0, 7)), values[2:4])
