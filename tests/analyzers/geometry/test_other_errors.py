"""Test that one recording tells the errors of others of the same training run."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import analyzers
from analyzers.geometry import other_errors
from analyzers.geometry.other_errors import OtherErrors, analysed_steps
from trajstore import Recorder, open_run
from trajstore.reading.run import Run

EPOCH, STEPS = 20, 120

OPTIONS: dict[str, dict[str, Any]] = {
    "folded": {"sketch_bits": 2048},
    "less folded": {"sketch_bits": 4096},
    "packed": {"sketch_bits": 8192},
    "2 bits": {"sketch_bits": 1 << 14},
    "16 bits": {"sketch_bits": 1 << 17},
    "more probes": {"sketch_bits": 2048, "probes": 2048},
}

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
}


@pytest.fixture(scope="module", params=OPTIMIZERS)
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Run]:
    """Return recordings of one training run with different options."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    nn = torch.nn
    model = nn.Sequential(nn.Linear(20, 120), nn.Tanh(), nn.Linear(120, 20))
    optimizer = OPTIMIZERS[request.param](model.parameters())
    lengths: dict[str, Any] = {"steps_per_epoch": EPOCH, "total_steps": STEPS}
    with ExitStack() as stack:
        for i, (name, options) in enumerate(OPTIONS.items()):
            path = folder / f"{name}.zarr"
            recorder = Recorder(path, model, optimizer, **lengths, **options, seed=i)
            stack.enter_context(recorder)
        for _ in range(STEPS):
            optimizer.zero_grad()
            x = torch.randn(8, 20)
            (model(x) - x.sin()).square().mean().backward()
            optimizer.step()
    return {name: open_run(folder / f"{name}.zarr") for name in OPTIONS}


def stated(run: Run) -> tuple[float, float]:
    """Return the root-mean-square errors that the analysis states, of steps and of means."""
    geometry = analyzers.path_geometry(run).compute()
    inside = (geometry.epoch > 0) & (geometry.epoch < STEPS // EPOCH - 1)
    means = analyzers.epoch_means(geometry).compute().gamma_stderr[1:-1]
    step = np.sqrt((geometry.gamma_stderr[inside] ** 2).mean())
    return float(step), float(np.sqrt((means**2).mean()))


def test_the_errors_of_its_own_options_are_those_that_the_analysis_states(
    runs: dict[str, Run],
):
    for run in runs.values():
        found = OtherErrors(run).of(run.spec)
        assert tuple(found) == pytest.approx(stated(run), rel=1e-3)


@pytest.mark.parametrize("own", ["folded", "packed"])
@pytest.mark.parametrize("other", OPTIONS)
def test_errors_of_other_options_are_those_of_their_recording(
    runs: dict[str, Run], own: str, other: str
):
    found = OtherErrors(runs[own]).of(runs[other].spec)
    step, mean = stated(runs[other])
    assert found.step == pytest.approx(step, rel=0.1)
    # How large a sum of gradients is that the run has not recorded is a guess.
    is_guessed = runs[other].spec.window_folds > runs[own].spec.window_folds
    assert found.mean == pytest.approx(mean, rel=0.2 if is_guessed else 0.1)


def test_long_runs_are_sampled(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch):
    run = runs["folded"]
    assert analysed_steps(run) == [slice(EPOCH, STEPS - EPOCH)]
    monkeypatch.setattr(other_errors, "MOST_STEPS", 2 * EPOCH)
    first, last = analysed_steps(run)
    assert first == slice(EPOCH, 2 * EPOCH)
    assert last == slice(STEPS - 2 * EPOCH, STEPS - EPOCH)
    found = OtherErrors(run).of(run.spec)
    assert tuple(found) == pytest.approx(stated(run), rel=0.2)
