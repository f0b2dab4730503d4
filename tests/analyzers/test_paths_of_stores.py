"""Test that analyses of a run also take the path of its store."""

import inspect
from pathlib import Path
from typing import Any

import pytest

import analyzers
import trajstore

pytest.importorskip("torch")

EXTRA: dict[str, dict[str, Any]] = {
    "average_of_epochs": {"epochs": [1, 2]},
    "polyak_lojasiewicz": {"reference_loss": 0.0},
    "convexity": {"reference_loss": 0.0},
    "alpha_beta": {"reference_losses": [0.0] * 60},
}
"""Arguments that an analysis needs besides the run."""

NEED_OTHER_RUNS = {
    *("adjacent_convexity", "compare", "compare_branches"),
    *("edge_of_stability", "linear_modes"),
}

OF_RUNS = [
    name
    for name in analyzers.__all__
    if {"run", "runs", "parent"}
    & set(inspect.signature(getattr(analyzers, name)).parameters)
    and name not in NEED_OTHER_RUNS | {"excess_gamma", "log", "store_geometry"}
]


@pytest.mark.parametrize("name", OF_RUNS)
def test_a_path_is_opened(name: str, example_run: Path):
    function, extra = getattr(analyzers, name), EXTRA.get(name, {})
    run = trajstore.open_run(example_run)
    of_run = function(run, **extra)
    for path in (example_run, str(example_run)):
        assert type(function(path, **extra)) is type(of_run)


@pytest.mark.filterwarnings("ignore:.*not parallel to gradients:UserWarning")
def test_excess_gamma_takes_a_path(example_run: Path):
    geometry = analyzers.path_geometry(example_run)
    excess = analyzers.excess_gamma(geometry, str(example_run))
    assert excess.excess.sizes == {"step": 60}


def test_branches_are_given_as_paths(example_run: Path):
    with pytest.raises(ValueError, match="is not a branch of"):
        analyzers.compare_branches(example_run, [str(example_run)])
