"""Plans of tiny networks and of short runs agree with errors of real recordings."""

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analyzers
from trajstore.format.layout import Layout
from trajstore.planning.errors import probe_crowding
from trajstore.planning.estimate import plan_recording
from trajstore.planning.measured import Optimizer

N_STEPS = 400


@pytest.mark.parametrize(
    ("n_params", "probes"), [(1, 8), (8, 8), (9, 8), (13, 8), (20, 8), (4000, 8)]
)
def test_crowding_counts_pairs_that_share_a_probe(n_params: int, probes: int):
    of_probe = np.bincount(np.arange(n_params) % probes)
    pairs = (of_probe * (of_probe - 1)).sum()
    found = probe_crowding(n_params, probes)
    assert found == pytest.approx(pairs * probes / n_params**2)
    assert found < 1


def measured(folder: Path, kind: Optimizer) -> tuple[float, Layout]:
    """Return the rms error of gamma mid-run in a network of 201 parameters, and its layout."""
    torch = pytest.importorskip("torch")
    from trajstore import Recorder

    torch.manual_seed(0)
    nn = torch.nn
    inputs = torch.randn(512, 3)
    targets = inputs[:, :1] * inputs[:, 1:2]
    model = nn.Sequential(
        nn.Linear(3, 24), nn.Tanh(), nn.Linear(24, 4), nn.Tanh(), nn.Linear(4, 1)
    )
    make: Any = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
        "adaptive": lambda p: torch.optim.Adam(p, lr=3e-3),
    }[kind]
    optimizer = make(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: 0.5 * (1 + math.cos(math.pi * k / N_STEPS))
    )
    with ExitStack() as stack:
        for name, options in (("s", {}), ("e", {"exact": True, "float64": True})):
            recorder = Recorder(
                folder / f"{name}.zarr",
                model,
                optimizer,
                total_steps=N_STEPS,
                **options,  # type: ignore[arg-type]
            )
            stack.enter_context(recorder)
        for _ in range(N_STEPS):
            chosen = torch.randint(512, (16,))
            optimizer.zero_grad()
            (model(inputs[chosen]) - targets[chosen]).square().mean().backward()
            optimizer.step()
            schedule.step()
    sketched, exact = (
        analyzers.path_geometry(folder / f"{name}.zarr").gamma.compute()
        for name in ("s", "e")
    )
    middle = slice(N_STEPS // 4, 3 * N_STEPS // 4)
    error = (sketched - exact).values[middle]
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    layout = Layout(tuple(shapes), tuple(shapes.values()))
    return float(np.sqrt((error**2).mean())), layout


@pytest.mark.parametrize("kind", ["sgd", "adaptive"])
def test_a_tiny_network_without_epochs_has_the_planned_error(
    tmp_path: Path, kind: Optimizer
):
    """Distances have no error from probes, and windows are shorter than 500 steps."""
    error, layout = measured(tmp_path, kind)
    plan = plan_recording(layout, n_steps=N_STEPS, rate="cosine", optimizer=kind)
    assert error / 4 < plan.stderr().typical < 4 * error


def test_windows_of_a_short_run_are_no_longer_than_they_are():
    plan = plan_recording(Layout(("w",), ((30_000,),)), n_steps=400, rate="cosine")
    assert plan.window_share == max(plan.windows.lengths) / 400 < 0.2
    longer = plan_recording(Layout(("w",), ((30_000,),)), n_steps=5000, rate="cosine")
    assert plan.stderr().typical < 2 * longer.stderr().typical


def test_an_exact_recording_has_no_error():
    layout = Layout(("w", "b"), ((100, 3), (3,)))
    plan = plan_recording(layout, n_steps=100, steps_per_epoch=10, exact=True)
    assert plan.stderr(mean_of=10) == (0, 0, 0)
    padded = plan_recording(Layout(("w",), ((2048,),)), n_steps=100, exact=True)
    share = plan.bytes_per_step["gradient"] / padded.bytes_per_step["gradient"]
    assert share == 303 / 2048


def test_a_tiny_network_has_the_planned_size(tmp_path: Path):
    _, layout = measured(tmp_path, "adaptive")
    plan = plan_recording(layout, n_steps=N_STEPS)
    files = (tmp_path / "s.zarr").rglob("*")
    stored = sum(file.stat().st_size for file in files if file.is_file())
    assert plan.disk == pytest.approx(stored, rel=0.2)
