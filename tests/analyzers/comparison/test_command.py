"""Test ``traj-analyze compare``."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import analyzers
from tests.analyzers.geometry.seeded import Seeded

torch = pytest.importorskip("torch")

from trajstore import Recorder


@pytest.fixture
def stores(trainings: Sequence[Seeded], tmp_path: Path) -> list[Path]:
    """Return copies of three runs, next to which results may be written."""
    chosen = [(0, 0), (1, 0), (0, 1)]
    paths = []
    for i, (training, seed) in enumerate(chosen):
        path = tmp_path / f"{'abc'[i]}.zarr"
        shutil.copytree(trainings[training].runs[seed].location, path)
        paths.append(path)
    return paths


def test_tables_fit_eighty_columns(
    stores: list[Path], traj_analyze: Callable[..., str]
):
    printed = traj_analyze("compare", *stores)
    report, _, paths = printed.partition("Figures: ")
    assert max(map(len, report.splitlines())) <= 80
    rows = [line.split() for line in report.splitlines()]
    assert ["2", "b.zarr", "96", "6", "9,610", "complete"] in rows
    assert ["lr", "0.01", "0.011"] in rows
    assert "Differences from a, c:" in report
    text = " ".join(report.split())
    assert "configuration difference 95 % interval verdict" in text
    assert "Of b there is one run: its ± is the error of the estimates" in text
    assert str(stores[0].with_suffix("")) + ".figures" in paths
    figures = {path.name for path in (stores[0].parent / "a.figures").iterdir()}
    assert figures == {"compare.png", "compare-over-seeds.png", "compare-paths.png"}
    stored = xr.open_zarr(
        stores[0].parent / "a.analysis.zarr", group="compare", consolidated=False
    )
    assert stored.run.values.tolist() == ["a.zarr", "b.zarr", "c.zarr"]
    assert (stored.gamma_difference[0, :4] == 0).all()
    assert np.isnan(stored.gamma[0, 4:]).all()


def test_many_runs_are_split_into_tables(
    stores: list[Path], traj_analyze: Callable[..., str]
):
    text = traj_analyze("compare", *[stores[i % 3] for i in range(7)])
    report, _, _ = text.partition("Figures: ")
    assert max(map(len, report.splitlines())) <= 80
    assert "Means over the runs of each configuration" in report
    rows = [line.split() for line in report.splitlines()]
    assert ["7", "a.zarr", "(3)", "64", "4", "9,610", "complete"] in rows


def test_single_runs_are_not_compared_over_seeds(
    stores: list[Path], traj_analyze: Callable[..., str]
):
    text = traj_analyze("compare", stores[0], stores[1])
    report, _, _ = text.partition("Figures: ")
    assert max(map(len, report.splitlines())) <= 80
    assert "does not say what another seed" in " ".join(report.split())
    assert "Differences from run 1:" in report
    rows = {line.split()[0]: line for line in report.splitlines() if line.strip()}
    for name in ("gamma", "RSI", "EB", "loLR", "distance"):
        assert rows[name].count("±") == 1  # the last table: of the difference
    document = json.loads(traj_analyze("compare", *stores, "--by", "lr", "--json"))
    averaged = document["configurations"]["variables"]
    assert averaged["gamma_difference_verdict"]["values"] == ["", "unknown"]
    assert document["groups"] == ["compare", "compare-over-seeds"]


def test_seeds_of_one_setting_are_compared_with_each_other(
    stores: list[Path], traj_analyze: Callable[..., str]
):
    report, _, _ = traj_analyze("compare", stores[0], stores[2]).partition("Figures: ")
    assert max(map(len, report.splitlines())) <= 80
    assert "configuration difference" not in report
    assert "Welch" not in report
    assert "Differences from a" not in report
    text = " ".join(report.split())
    assert "Differences from run 1: 2 gamma" in text
    assert "is the error of the recording alone" in text
    assert "Means over the runs of each configuration" in text
    lines = report.splitlines()
    each = lines[next(i for i, line in enumerate(lines) if "Each run" in line) :]
    [gamma] = [line for line in each[:6] if line.split()[:1] == ["gamma"]]
    assert gamma.count("±") == 2
    # The differences are those of Python.
    compared = analyzers.compare([stores[0], stores[2]])
    middle = analyzers.mid_run(compared).compute()
    value = float(middle.gamma[1] - middle.gamma[0])
    assert float(middle.gamma_difference[1]) == value
    error = np.hypot(*middle.gamma_stderr.values)
    assert float(middle.gamma_difference_stderr[1]) == pytest.approx(error)
    assert f"{value:+.2g}"[:5] in text


def test_figure_of_one_configuration_has_a_title_and_no_legend(stores: list[Path]):
    averaged = analyzers.compare_over_seeds([stores[0], stores[2]]).compute()
    figure = analyzers.plots.compare(averaged)
    assert not figure.legends
    assert figure.get_suptitle() == "AdamW"
    n_panels = sum(ax.has_data() for ax in figure.axes)
    assert "error bars" in figure.axes[n_panels].texts[0].get_text()
    plt.close(figure)


def test_unlike_optimizers_are_named(
    stores: list[Path], traj_analyze: Callable[..., str], tmp_path: Path
):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "sgd.zarr", model, optimizer, steps_per_epoch=4):
        for _ in range(12):
            optimizer.zero_grad()
            model(torch.randn(3)).square().sum().backward()
            optimizer.step()
    note = "The runs have different optimizers."
    unlike = traj_analyze("compare", stores[0], tmp_path / "sgd.zarr")
    assert note in " ".join(unlike.split())
    alike = traj_analyze("compare", stores[0], stores[1])
    assert note not in " ".join(alike.split())


def test_a_single_store_is_refused(stores: list[Path], refused: Callable[..., str]):
    assert "needs two stores or more, got 1" in refused("compare", stores[0])


def test_other_targets_are_compared(
    stores: list[Path], traj_analyze: Callable[..., str]
):
    traj_analyze("compare", stores[0], stores[1], "--reference", "2", "--format", "svg")
    stored = xr.open_zarr(
        stores[0].parent / "a.analysis.zarr", group="compare", consolidated=False
    )
    assert stored.attrs["reference"] == "epoch 2"
    assert (stores[0].parent / "a.figures" / "compare.svg").exists()
