"""Test ``analyzers.no_wrong_turns.measurements``."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analyzers
from analyzers.no_wrong_turns.curves import AS_PUBLISHED
from analyzers.no_wrong_turns.figures import FIGURES, draw_figure
from analyzers.no_wrong_turns.measurements import other_measurements, theory_and_data
from analyzers.no_wrong_turns.runs import trained
from trajstore.reading.run import Run, open_run

torch = pytest.importorskip("torch")

SETTINGS = {
    "workload": "small-net",
    "data": "embedded",
    "control": "none",
    "full_batch": False,
    "weight_decay": 0.1,
    "schedule": "constant",
    "epochs": 5,
    "batch_size": 16,
    "lr": 0.05,
    "seed": 0,
    "optimizer": "momentum",
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Record a run with updates, and with other gradients once per epoch."""
    return record(tmp_path_factory.mktemp("measured") / "run.zarr")


def record(path: Path, **options: Any) -> Run:
    from trajstore import Recorder

    torch.manual_seed(0)
    model = torch.nn.Linear(30, 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    options = {"sketch_bits": 256, "probes": 64} | options
    attrs = {"training": SETTINGS}
    with Recorder(
        path, model, optimizer, steps_per_epoch=8, updates=True, attrs=attrs, **options
    ) as recorder:
        for step in range(40):
            for name in ("full_batch", "step") if step % 8 == 0 else ("step",):
                optimizer.zero_grad()
                inputs = torch.randn(16, 30)
                (model(inputs) - inputs[:, :20]).square().mean().backward()
                if name != "step":
                    recorder.measure(name)
            optimizer.step()
    return open_run(path)


def test_every_direction_has_a_curve(measured: Run):
    gradients, updates, cosines, distances = other_measurements(
        [trained(measured)], AS_PUBLISHED
    )
    labels = ["of steps", "of steps, with weight decay", "all data"]
    assert [curve.label for curve in gradients.curves] == labels
    # The final epoch of five is left out.
    assert all(curve.x.tolist() == [0, 1, 2, 3] for curve in gradients.curves)
    geometry = analyzers.path_geometry(measured.measured("update")).gamma.compute()
    expected = -geometry.groupby("epoch").mean()[:4]
    np.testing.assert_allclose(updates.curves[0].y, expected)
    assert [curve.label for curve in cosines.curves] == [
        "1 step",
        "5 steps",
        "20 steps",
    ]
    assert [curve.label for curve in distances.curves] == [
        "1 step",
        "5 steps",
        "20 steps",
    ]


@pytest.mark.parametrize("exact", [False, True], ids=["sketched", "exact"])
def test_without_a_basis_only_the_curve_that_needs_one_is_left_out(
    tmp_path: Path, exact: bool
):
    run = record(tmp_path / "run.zarr", basis=0, exact=exact)
    gradients, *others = other_measurements([trained(run)], AS_PUBLISHED)
    labels = {curve.label for curve in gradients.curves}
    needs_basis = {"of steps, with weight decay"}
    assert labels == {"of steps", "all data"} | (needs_basis if exact else set())
    assert all(panel.curves for panel in others)


def test_a_run_without_measurements_says_what_is_needed(
    tmp_path: Path, train_small: Callable[..., Any]
):
    from trajstore import Recorder

    train_small(
        partial(Recorder, tmp_path / "run", attrs={"training": SETTINGS}),
        sketch_bits=64,
        probes=16,
    )
    panels = other_measurements([trained(open_run(tmp_path / "run"))], AS_PUBLISHED)
    assert all(not panel.curves for panel in panels)
    with pytest.raises(ValueError, match="The figure of measurements needs a run"):
        draw_figure("measurements", [trained(open_run(tmp_path / "run"))])


def test_plain_descent_follows_the_theory(tmp_path: Path):
    """On an exactly recorded quadratic, equation (4) is an identity."""
    from trajstore import Recorder

    model = torch.nn.Linear(10, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = SETTINGS | {"optimizer": "sgd", "weight_decay": 0.0}
    with Recorder(
        tmp_path / "run",
        model,
        optimizer,
        steps_per_epoch=4,
        exact=True,
        attrs={"training": plain},
    ):
        scale = torch.linspace(0.5, 2, 10)
        for _ in range(24):
            model.weight.grad = scale * model.weight.detach()
            optimizer.step()
    [panel] = theory_and_data([trained(open_run(tmp_path / "run"))], AS_PUBLISHED)
    measured, predicted, best, least = panel.curves
    np.testing.assert_allclose(measured.y, predicted.y, rtol=1e-4)
    assert (best.y >= predicted.y - 1e-6).all()
    assert (least.y <= best.y + 1e-6).all()
    assert set(FIGURES) >= {"measurements", "theory"}
