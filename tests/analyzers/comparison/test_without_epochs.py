"""Runs without epochs are compared by ranges of steps."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

import analyzers
from analyzers.comparison.compare import mid_run
from analyzers.comparison.plots import PANELS

torch = pytest.importorskip("torch")

from torch import nn

from trajstore import Recorder


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    """Record runs of 100 and 60 steps without epochs, and one with epochs."""
    folder = tmp_path_factory.mktemp("no-epochs")
    recorded: list[Path] = []
    kinds: list[tuple[str, int, dict[str, Any]]] = [
        ("long", 100, {}),
        ("short", 60, {}),
        ("epochs", 100, {"steps_per_epoch": 10}),
    ]
    for name, n_steps, options in kinds:
        torch.manual_seed(len(recorded))
        inputs = torch.randn(64, 5)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        path = folder / f"{name}.zarr"
        with Recorder(path, model, optimizer, total_steps=n_steps, **options) as r:
            for k in range(n_steps):
                optimizer.zero_grad()
                batch = inputs[k % 8 * 8 : k % 8 * 8 + 8]
                loss = (model(batch) - batch[:, :1]).square().mean()
                loss.backward()
                r.log(loss=loss)
                optimizer.step()
        recorded.append(path)
    return recorded


def test_ranges_take_the_place_of_epochs(paths: Sequence[Path]):
    compared = analyzers.compare(paths[:2]).compute()
    assert compared.attrs["time"] == "step"
    assert compared["epoch"].values.tolist() == list(range(0, 100, 5))
    np.testing.assert_array_equal(compared.n_steps, [[5] * 20, [5] * 12 + [0] * 8])
    ranges = analyzers.range_means(analyzers.path_geometry(paths[0])).compute()
    for name in ("gamma", "gamma_stderr", "distance_max"):
        np.testing.assert_allclose(compared[name][0], ranges[name])
    assert np.isfinite(compared["loss"][1, :12]).all()
    for i, path in enumerate(paths[:2]):
        means = analyzers.range_means(
            analyzers.path_geometry(path), n_ranges=(20, 12)[i]
        )
        expected = analyzers.mid_run(means).compute()
        found = mid_run(compared).isel(run=i)
        np.testing.assert_allclose(found.gamma, expected.gamma)
        np.testing.assert_allclose(found.rsi_stderr, expected.rsi_stderr)


def test_figures_say_steps_and_have_one_legend(paths: Sequence[Path]):
    figure = analyzers.plots.compare(analyzers.compare(paths[:2]).compute())
    assert {ax.get_xlabel() for ax in figure.axes if ax.axison} == {"step"}
    assert all(ax.get_legend() is None for ax in figure.axes)
    [legend] = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["long.zarr", "short.zarr"]
    [distance] = [ax for ax in figure.axes if ax.get_title() == PANELS["distance"][1]]
    assert distance.get_yscale() == "log"
    plt.close(figure)


def test_next_to_epochs_a_run_without_has_no_middle(
    paths: Sequence[Path], traj_analyze: Callable[..., str]
):
    mixed = analyzers.compare(paths).compute()
    assert mixed.attrs["time"] == "epoch"
    assert np.isnan(mid_run(mixed).gamma).values.tolist() == [True, True, False]
    note = "a run without epochs has no middle half"
    assert note in " ".join(traj_analyze("compare", *paths).split())
    alone = " ".join(traj_analyze("compare", *paths[:2]).split())
    assert note not in alone
    assert "unknown" not in alone


def test_epochs_behind_a_target_inside_do_not_count(paths: Sequence[Path]):
    compared = analyzers.compare([paths[2], paths[2]], reference=4).compute()
    assert compared.attrs["reference_epoch"] == [4, 4]
    expected = analyzers.path_geometry(paths[2], reference=4)
    middle = analyzers.mid_run(analyzers.epoch_means(expected)).compute()
    np.testing.assert_allclose(mid_run(compared).gamma, [middle.gamma] * 2)
