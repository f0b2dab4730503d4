"""Test that decoded anchors equal the anchors that the recorder used."""

from pathlib import Path

import numpy as np
import pytest

from tests.trajstore.handmade import SIZE, random_window, write_run
from trajstore import open_run
from trajstore.format.arrays import KEYFRAME_EVERY
from trajstore.format.layout import BLOCK
from trajstore.reading.stored_rows import StoredRows
from trajstore.store.chunks import ReadResult


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.zarr"


def test_anchors_are_decoded_bit_for_bit(path: Path):
    n_windows = 70
    write_run(path, n_steps=n_windows)
    run = open_run(path)
    expected, anchor = [], np.empty(0, np.float32)
    for c in range(n_windows):
        window = random_window(c)
        if window.keyframe is not None:
            anchor = window.keyframe
        else:
            factors = np.repeat(window.scales, BLOCK)
            anchor = anchor + window.codes.astype(np.float32) * factors
        expected.append(anchor)
    assert run.stored.array("references/keyframes").shape == (3, SIZE)
    # Decode in ascending order, as analyses do, and in an order without cached anchors.
    for c in [*range(n_windows), 31, 63, 0, 32, 69, 5]:
        for part in (slice(0, SIZE), slice(BLOCK, 3 * BLOCK), slice(5, BLOCK + 7)):
            found = run.stored.anchors.decode(c, part)
            assert found.dtype == np.float32
            assert found.tobytes() == expected[c][part].tobytes()


def test_successive_anchors_equal_anchors_decoded_alone(path: Path):
    write_run(path, n_steps=40)
    anchors, part = open_run(path).stored.anchors, slice(BLOCK, 3 * BLOCK)
    buffers = [np.empty(2 * BLOCK, np.float32) for _ in range(2)]
    windows = range(30, 36)
    found = [each.copy() for each in anchors.decode_each(windows, part, buffers)]
    expected = [anchors.decode(window, part) for window in windows]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("n_windows", [1, 3])
def test_codes_of_several_windows_are_read_at_once(
    path: Path, n_windows: int, monkeypatch: pytest.MonkeyPatch
):
    write_run(path, n_steps=70)
    stored, part = open_run(path).stored, slice(BLOCK, 3 * BLOCK)
    monkeypatch.setattr("trajstore.reading.anchors.READ_AHEAD", n_windows * 2 * BLOCK)
    rows = []
    read = stored.read

    def noted(_stored: StoredRows, name: str, *parts: slice) -> ReadResult:
        if name == "references/codes":
            rows.append(parts[0])
        return read(name, *parts)

    monkeypatch.setattr(StoredRows, "read", noted)
    buffers = [np.empty(2 * BLOCK, np.float32) for _ in range(2)]
    decoded = stored.anchors.decode_each(range(70), part, buffers)
    found = [each.copy() for each in decoded]
    # No codes are read for keyframes.
    assert [c for row in rows for c in range(row.start, row.stop)] == [
        c for c in range(70) if c % KEYFRAME_EVERY
    ]
    assert max(row.stop - row.start for row in rows) == n_windows
    expected = [stored.anchors.decode(c, part) for c in range(70)]
    np.testing.assert_array_equal(found, expected)


def test_differences_of_anchors_are_those_that_were_coded(path: Path):
    write_run(path, n_steps=40)
    anchors, part = open_run(path).stored.anchors, slice(BLOCK, 3 * BLOCK)
    buffers, moves = np.empty((2, 2, 2 * BLOCK), np.float32)
    for windows in (range(3), range(30, 36)):
        found = anchors.decode_each(windows, part, [*buffers], [*moves])
        for c, _ in zip(windows, found, strict=True):
            window = random_window(c)
            factors = np.repeat(window.scales, BLOCK)
            expected = (window.codes.astype(np.float32) * factors)[part]
            np.testing.assert_array_equal(moves[c % 2], expected if c else 0)


def test_damage_reads_as_nan_up_to_the_next_keyframe(path: Path):
    write_run(path, n_steps=40)
    (path / "references/codes/c/30/0").unlink()
    anchors, whole = open_run(path).stored.anchors, slice(0, SIZE)
    with pytest.warns(UserWarning, match=r"codes/c/30/0 is missing.*read as NaN"):
        lost = [np.isnan(anchors.decode(window, whole)).all() for window in range(34)]
    assert np.flatnonzero(lost).tolist() == [30, 31]


def test_decoded_anchors_cannot_be_changed(path: Path):
    write_run(path, n_steps=2)
    for window in (0, 1):
        anchor = open_run(path).stored.anchors.decode(window, slice(0, SIZE))
        with pytest.raises(ValueError, match="read-only"):
            anchor += 1
