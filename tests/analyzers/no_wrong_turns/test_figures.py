"""Test that the figures of ``analyzers.no_wrong_turns.figures`` show the right runs."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import analyzers
from analyzers.no_wrong_turns.curves import AS_PUBLISHED, EpochSelection
from analyzers.no_wrong_turns.defaults import FIGURE_NAMES
from analyzers.no_wrong_turns.figures import (
    FIGURES,
    draw_figure,
    missing_runs,
    panels_of,
)
from analyzers.no_wrong_turns.runs import TrainedRun
from analyzers.plots import Curve, Panel, draw_panels
from trajstore.reading.run import Run

Figures = Callable[[str], list[Panel]]


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def runs(trained_runs: dict[str, TrainedRun]) -> list[TrainedRun]:
    return list(trained_runs.values())


@pytest.fixture(scope="module")
def published(runs: list[TrainedRun]) -> Figures:
    """Return a cached function that makes the panels of a figure."""
    return cache(lambda number: panels_of(number, runs, epochs=AS_PUBLISHED))


@cache
def geometry_to_final(run: Run) -> xr.Dataset:
    return analyzers.path_geometry(run).compute()


def epoch_values(run: Run, quantity: str, **options: Any) -> list[np.ndarray[Any, Any]]:
    """Return the values of every epoch, computed independently."""
    geometry = (
        analyzers.path_geometry(run, **options) if options else geometry_to_final(run)
    )
    values = geometry[quantity].values
    return [values[run.stored.epochs == epoch] for epoch in range(run.n_epochs)]


def assert_shows(
    curve: Curve, run: Run, quantity: str, *, n: int, scale: float = 1, **options: Any
) -> None:
    values = [scale * v for v in epoch_values(run, quantity, **options)[:n]]
    np.testing.assert_array_equal(curve.x, range(n))
    assert curve.low is not None
    assert curve.high is not None
    np.testing.assert_allclose(curve.y, [v.mean() for v in values], rtol=1e-9)
    np.testing.assert_allclose(curve.low, [v.min() for v in values], rtol=1e-9)
    np.testing.assert_allclose(curve.high, [v.max() for v in values], rtol=1e-9)


def labels(panel: Panel) -> list[str]:
    return [curve.label for curve in panel.curves]


def test_numbers_are_those_of_the_paper_and_names_are_ours():
    ours = ["controls", "measurements", "theory"]
    assert list(FIGURES) == [*map(str, range(1, 15)), *ours]


@pytest.mark.parametrize("number", FIGURES)
def test_every_figure_can_be_drawn(number: str, published: Figures):
    figure = draw_panels(published(number), n_columns=FIGURES[number].n_columns)
    figure.canvas.draw()
    for ax in figure.axes:
        if ax.axison:
            assert ax.get_title()
            assert ax.texts or ax.lines


@pytest.mark.parametrize("number", FIGURES)
def test_titles_say_that_data_is_embedded(number: str, published: Figures):
    titles = [panel.title for panel in published(number)]
    data = [title for title in titles if title.startswith("shapes")]
    assert all(title.startswith("shapes (embedded data)") for title in data)
    assert data or number == "5"


def test_means_are_shown_without_the_final_epoch(
    published: Figures, paper_runs: dict[str, Run]
):
    [_, panel, _, _] = published("1")
    assert labels(panel) == ["4", "16", "64"]
    for curve, name in zip(panel.curves, ("batch-4", "base", "batch-64"), strict=True):
        assert_shows(curve, paper_runs[name], "gamma", n=7)
    assert panel.is_ordered


def test_figure_draws_the_curves_of_its_panels(
    published: Figures, runs: list[TrainedRun]
):
    panels = published("14")
    figure = draw_figure("14", runs)
    for panel, ax in zip(panels, figure.axes, strict=True):
        for curve in panel.curves:
            assert any(np.array_equal(line.get_ydata(), curve.y) for line in ax.lines)


@pytest.mark.parametrize(
    ("epochs", "n"),
    [
        (EpochSelection(keep_final=True), 8),
        (EpochSelection(until=4), 5),
        (EpochSelection(until=4, keep_final=True), 5),
        (EpochSelection(until=99), 7),
    ],
)
def test_epochs_can_be_chosen(
    runs: list[TrainedRun], paper_runs: dict[str, Run], epochs: EpochSelection, n: int
):
    [panel] = panels_of("14", runs, epochs=epochs)
    assert labels(panel) == ["shapes-mlp", "shapes-resnet"]
    assert_shows(panel.curves[0], paper_runs["mlp"], "gamma", n=n)
    # The run "sgd" was trained like the MLP.
    assert_shows(panel.curves[1], paper_runs["sgd"], "gamma", n=n)


def test_run_of_one_epoch_is_shown():
    assert EpochSelection().last(1) == 0


def test_optimizers_are_compared(published: Figures, paper_runs: dict[str, Run]):
    for number, quantities in (("1", ["gamma"]), ("9", ["rsi", "eb"])):
        panels = published(number)
        chosen = [p for p in panels if "optimizer" in p.title]
        for panel, quantity in zip(chosen, quantities, strict=True):
            assert labels(panel) == ["sgd", "momentum", "adam"]
            for curve, name in zip(panel.curves, ("sgd", "base", "adam"), strict=True):
                assert_shows(curve, paper_runs[name], quantity, n=7)


def test_single_run_is_the_base_run(published: Figures, paper_runs: dict[str, Run]):
    panels = published("2")
    for panel, quantity in zip(panels, ("gamma", "rsi", "eb"), strict=True):
        assert_shows(panel.curves[0], paper_runs["base"], quantity, n=7)
    [distance] = published("13")
    assert_shows(distance.curves[0], paper_runs["base"], "distance", n=7)


def test_lolr_is_shown_next_to_the_rate_used(
    published: Figures, paper_runs: dict[str, Run]
):
    run = paper_runs["cosine"]
    optimal, used = published("3")
    assert_shows(optimal.curves[0], run, "lolr", n=7)
    rates = run.steps["lr"].values.reshape(8, 6).mean(1)
    np.testing.assert_allclose(used.curves[0].y, rates[:7], rtol=1e-9)
    assert "cosine" in used.title


def test_seeds_and_budgets(published: Figures, paper_runs: dict[str, Run]):
    seeds, budgets, within = published("4")
    assert labels(seeds) == ["0", "1", "2"]
    assert labels(budgets) == ["4", "8"]
    assert_shows(budgets.curves[0], paper_runs["short"], "gamma", n=3)
    assert labels(within) == ["4", "8, the end"]
    assert_shows(within.curves[0], paper_runs["base"], "gamma", n=3, reference=4)
    assert_shows(within.curves[1], paper_runs["base"], "gamma", n=7)


def test_counter_examples_are_shown_step_by_step(
    published: Figures, paper_runs: dict[str, Run]
):
    panels = published("5")
    assert len(panels) == 6
    geometry = geometry_to_final(paper_runs["sm"])
    for panel, quantity in zip(panels[3:], ("gamma", "rsi", "eb"), strict=True):
        assert "sinusoidal mixture" in panel.title
        np.testing.assert_allclose(
            panel.curves[0].y, geometry[quantity][: 7 * 6], rtol=1e-9
        )


def test_scaled_panel_is_over_the_root_of_the_batch_size(
    published: Figures, paper_runs: dict[str, Run]
):
    _, scaled = published("6")
    for curve, (size, name) in zip(
        scaled.curves, ((4, "batch-4"), (16, "base"), (64, "batch-64")), strict=True
    ):
        run = paper_runs[name]
        assert_shows(curve, run, "gamma", n=7, scale=size**-0.5)


def test_distance_travelled_is_that_of_the_iterates(
    published: Figures, paper_runs: dict[str, Run]
):
    start, length = published("12")
    assert labels(start) == labels(length) == ["sgd", "momentum", "adam"]
    travelled = analyzers.distance_travelled(paper_runs["adam"])
    for panel, name in ((start, "from_start"), (length, "path_length")):
        expected = travelled[name].values.reshape(8, 6).mean(1)
        np.testing.assert_allclose(panel.curves[2].y, expected, rtol=1e-9)


def test_controls_are_shown_next_to_training(
    published: Figures, paper_runs: dict[str, Run]
):
    control, full, walk, reference = published("controls")
    assert labels(control) == ["training", "random-labels", "noise-gradients"]
    for curve, name in zip(
        (*control.curves, *full.curves),
        ("base", "random-labels", "noise", "full"),
        strict=True,
    ):
        assert_shows(curve, paper_runs[name], "gamma", n=7)
    assert labels(walk) == ["sgd", "random walk"]
    null = analyzers.random_walk_gamma(paper_runs["sgd"]).values.reshape(8, 6).mean(1)
    np.testing.assert_allclose(walk.curves[1].y, null[:7], rtol=1e-9)
    assert labels(reference) == [
        "own end",
        "epoch 4",
        "mean of 6-7",
        "end of another seed",
    ]
    base, other = paper_runs["base"], paper_runs["seed-1"]
    average = analyzers.average_of_epochs(base, [6, 7])
    assert_shows(reference.curves[1], base, "gamma", n=3, reference=4)
    assert_shows(reference.curves[2], base, "gamma", n=7, reference=average)
    assert_shows(reference.curves[3], base, "gamma", n=7, reference=other)


def test_panels_without_runs_say_what_they_need(trained_runs: dict[str, TrainedRun]):
    figure = draw_figure("1", [trained_runs["base"]])
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert "needs runs that differ in the batch size only" in texts
    assert len(texts) == 3


@pytest.mark.parametrize("number", FIGURES)
def test_a_figure_without_runs_is_reported_in_one_sentence(number: str):
    with pytest.raises(ValueError, match=r"needs .*; found no complete run") as error:
        draw_figure(number, [])
    assert str(error.value) == missing_runs(number, [])


def test_missing_runs_are_reported_with_the_runs_found(
    trained_runs: dict[str, TrainedRun],
):
    with pytest.raises(
        ValueError, match=r"differ in the batch size only; found 1 run: 1 of shapes"
    ):
        draw_figure("6", [trained_runs["base"]])


def test_commands_know_the_names_of_the_figures():
    assert tuple(FIGURES) == FIGURE_NAMES
