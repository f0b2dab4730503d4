"""Test ``analyzers.compare_branches`` on branches of a quadratic descent."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analyzers
from tests.analyzers.quadratic import descend, iterates
from trajstore.reading.run import Run

pytest.importorskip("torch")

EIGENVALUES = [1.0, 0.9]
FIRST = 20
RATES = [0.1] * FIRST + [1.7] * 30
"""Learning rates of the parent; the branches start where its steps become long."""


def record_branch(
    path: Path, parent: Run, scale: float, n_steps: int, **changes: Any
) -> Run:
    rates = [1.7 * scale] * n_steps
    branch = {
        "parent": "parent.zarr",
        "parent_created": parent.stored.document.created,
        "epoch": 2,
        "step": FIRST,
        "lr_scale": scale,
    }
    start = iterates(EIGENVALUES, RATES)[FIRST]
    return descend(
        path, rates, EIGENVALUES, start=start, attrs={"branch": branch | changes}
    )


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("scales") / "parent.zarr"
    return descend(path, RATES, EIGENVALUES)


@pytest.fixture(scope="module")
def branches(tmp_path_factory: pytest.TempPathFactory, parent: Run) -> list[Run]:
    directory = tmp_path_factory.mktemp("branches")
    return [
        record_branch(directory / f"{scale}.zarr", parent, scale, n)
        for scale, n in ((0.1, 60), (1.0, 30))
    ]


def test_a_zigzag_of_long_steps_is_smooth_with_short_ones(
    parent: Run, branches: list[Run]
):
    found = analyzers.compare_branches(parent, branches)
    assert found.branch.values.tolist() == ["parent.zarr", "1.0.zarr", "0.1.zarr"]
    assert found.lr_scale.values.tolist() == [1, 1, 0.1]
    assert found.n_steps.values.tolist() == [30, 30, 60]
    zigzag = found.step_share.sel(kind="zigzag").values
    assert zigzag.tolist() == [1, 1, 0]
    assert found.step_share.sel(kind="smooth").values.tolist() == [0, 0, 1]
    # Only the parent's steps after the branching count, as in the branch that repeats them.
    for name, variable in found.data_vars.items():
        np.testing.assert_allclose(
            variable.isel(branch=0), variable.isel(branch=1), rtol=1e-5, atol=1e-6
        )
        del name
    lowest, highest = found.histogram.values[:, 0], found.histogram.values[:, -1]
    np.testing.assert_allclose(lowest, [1, 1, 0])
    np.testing.assert_allclose(highest, [0, 0, 1])


def test_parts_lie_where_their_steps_are(parent: Run, branches: list[Run]):
    found = analyzers.compare_branches(parent, branches).isel(branch=0)
    x = iterates(EIGENVALUES, [*RATES, 0.0])[FIRST:]
    lengths = np.linalg.norm(np.diff(x, axis=0), axis=1)
    # There are 30 steps in 30 parts, so each part has one step.
    middle = np.cumsum(lengths) - lengths / 2
    np.testing.assert_allclose(found.path, middle, rtol=1e-5)
    np.testing.assert_allclose(found.lr_time, 1.7 * np.arange(1, 31))
    assert float(found.path_length) == pytest.approx(lengths.sum(), rel=1e-5)


def test_paths_are_cut_to_the_same_length(parent: Run, branches: list[Run]):
    whole = analyzers.compare_branches(parent, branches)
    longest = float(whole.path_length.min()) / 2
    found = analyzers.compare_branches(parent, branches, length=longest)
    assert (found.n_steps < whole.n_steps).all()
    steps = branches[0].steps.update_norm.values
    n = int(found.n_steps[2])
    assert steps[: n - 1].sum() < longest <= steps[:n].sum()


def test_losses_are_not_needed(parent: Run, branches: list[Run]):
    assert "decrease" not in analyzers.compare_branches(parent, branches, loss=None)
    with pytest.raises(KeyError, match="No losses 'entropy'"):
        analyzers.compare_branches(parent, branches, loss="entropy")


def test_runs_that_cannot_be_compared_are_refused(
    parent: Run, branches: list[Run], tmp_path: Path
):
    with pytest.raises(ValueError, match=r"No branches of .* traj-train branch"):
        analyzers.compare_branches(parent, [])
    with pytest.raises(ValueError, match=r"not a branch of .*, but a run of its own"):
        analyzers.compare_branches(parent, [parent])
    other = descend(tmp_path / "other.zarr", RATES, EIGENVALUES)
    with pytest.raises(ValueError, match=r"but a branch of parent\.zarr"):
        analyzers.compare_branches(other, branches)
    later = record_branch(tmp_path / "later.zarr", parent, 0.5, 3, epoch=3, step=30)
    with pytest.raises(ValueError, match=r"begin in the epochs \[2, 3\]; compare"):
        analyzers.compare_branches(parent, [*branches, later])
    end = record_branch(tmp_path / "end.zarr", parent, 0.5, 3, epoch=5, step=49)
    with pytest.raises(ValueError, match="has 50 steps, and its branches begin with"):
        analyzers.compare_branches(parent, [end])
    with pytest.raises(ValueError, match=r"`length` must be positive, got 0\."):
        analyzers.compare_branches(parent, branches, length=0.0)
    with pytest.raises(ValueError, match="`window` must be an odd number"):
        analyzers.compare_branches(parent, branches, window=2)
