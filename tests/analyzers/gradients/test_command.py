"""Test ``traj-analyze zigzag`` and ``traj-analyze compare-branches``."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import analyzers
import trajstore
from analyzers import cli
from tests.analyzers.quadratic import descend
from tests.analyzers.stored_results import stored

pytest.importorskip("torch")

Run = Callable[..., str]


def table(output: str, *first: str) -> list[list[str]]:
    """Return the rows below the header that begins with `first`, up to an empty line."""
    lines = [line.split() for line in output.splitlines()]
    [header] = [i for i, line in enumerate(lines) if line[: len(first)] == list(first)]
    rows = lines[header + 1 :]
    return rows[: rows.index([])]


def test_a_run_is_shown_in_tables_and_figures(
    example_run: Path, tmp_path: Path, traj_analyze: Run
):
    store = Path(shutil.copytree(example_run, tmp_path / "run.zarr"))
    output = traj_analyze("zigzag", store, "--layers", "--threshold", "0.2")
    run = trajstore.open_run(store)
    segments = analyzers.zigzag_segments(run, threshold=0.2)
    rows = table(output, "segments", "steps", "path")
    for row, kind in zip(rows, segments.kind.values, strict=True):
        of_kind = segments.sel(kind=kind)
        assert row[:2] == [kind, str(int(of_kind.n_segments))]
        assert row[2] == f"{float(of_kind.step_share):.1%}"
    by_layer = table(output, "tensor", "mean", "cosine")
    assert [row[0] for row in by_layer] == list(run.layout.names)
    by_threshold = table(output, "zigzag", "by", "threshold", "window")
    assert len(by_threshold) == 9
    tables = output[: output.index("Figures:")]
    assert max(map(len, tables.splitlines())) <= 80
    assert "…" not in output
    figures = store.with_suffix(".figures")
    for name in ("zigzag", "zigzag-layers"):
        assert (figures / f"{name}.png").stat().st_size > 10_000
    xr.testing.assert_allclose(
        stored(store, "zigzag-segments").drop_vars(["epoch", "iteration"]),
        segments.drop_vars(["epoch", "iteration"]),
    )
    cosine = stored(store, "zigzag").cosine
    np.testing.assert_array_equal(cosine, analyzers.zigzag(run, layers=True).cosine)
    shares = stored(store, "zigzag-shares")
    assert shares.window.values.tolist() == [1, 11, 55]
    assert stored(store, "zigzag-lags").cosine.sizes == {"lag": 20}


def test_a_run_without_losses_is_shown_without_them(tmp_path: Path, traj_analyze: Run):
    store = tmp_path / "run.zarr"
    descend(store, [0.1] * 20, np.ones(20), with_loss=False)
    output = traj_analyze("zigzag", store, "--loss", "none")
    assert "decrease" not in output
    assert "decrease" not in stored(store, "zigzag-segments")
    assert (tmp_path / "run.figures" / "zigzag.png").exists()


def test_branches_are_compared_with_their_parent(tmp_path: Path, traj_analyze: Run):
    store = tmp_path / "run.zarr"
    parent = descend(store, [0.1] * 10 + [1.7] * 20, np.ones(20))
    says: dict[str, Any] = {
        "parent": "run.zarr",
        "parent_created": parent.stored.document.created,
        "epoch": 1,
        "step": 10,
    }
    paths = []
    for scale in (0.1, 1.0):
        paths.append(tmp_path / f"{scale}.zarr")
        attrs = {"branch": says | {"lr_scale": scale}}
        rates = [1.7 * scale] * 20
        descend(paths[-1], rates, np.ones(20), start=0.9**10, attrs=attrs)
    output = traj_analyze("compare-branches", store, *paths)
    rows = table(output, "lr", "x", "steps")
    assert [row[0] for row in rows] == ["parent", "1", "0.1"]
    assert [row[3] for row in rows] == ["100.0%", "100.0%", "0.0%"]
    tables = output[: output.index("Figure:")]
    assert max(map(len, tables.splitlines())) <= 80
    assert stored(store, "zigzag-scales").lr_scale.values.tolist() == [1, 1, 0.1]
    figure = tmp_path / "run.figures" / "zigzag-scales.png"
    assert figure.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zigzag"], "No losses 'loss' in"),
        (["zigzag", "--window", "4"], "--window must be an odd number of steps, got 4"),
        (["compare-branches"], "No branches of"),
    ],
)
def test_errors_are_reported_in_one_sentence(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    store = tmp_path / "run.zarr"
    descend(store, [0.1] * 5, [1.0], with_loss=False)
    command, *options = arguments
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setattr(sys, "argv", ["traj-analyze", command, str(store), *options])
    with pytest.raises(SystemExit, match=r"^1$"):
        cli.main()
    error = capsys.readouterr().err
    assert error.startswith(f"traj-analyze: {message}")
    assert error.count("\n") == 1
