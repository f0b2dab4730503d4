"""Test ``analyzers.cli``."""

from collections.abc import Callable
from pathlib import Path

Run = Callable[..., str]


def test_missing_store_is_one_sentence(tmp_path: Path, refused: Run):
    printed = refused("geometry", tmp_path / "none.zarr")
    assert printed.startswith("traj-analyze: There is no trajectory store at")
    assert list(tmp_path.iterdir()) == []
