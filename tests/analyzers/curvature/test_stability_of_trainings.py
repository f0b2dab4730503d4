"""What is known of trainings: the edge of stability, and convolutions before normalisation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analyzers
from trajstore.reading.run import Run, open_run

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from train.protocols.record import record
from train.workloads.catalogue import settings_of


def recorded(path: Path, name: str, **changes: Any) -> Run:
    options: dict[str, Any] = {"sketch_bits": 1024, "probes": 256}
    if name == "digits-tanh":
        options["reference_every"] = 50
    record(replace(settings_of(name), **changes), path, **options)
    return open_run(path)


@pytest.mark.slow
@pytest.mark.parametrize("lr", [0.3, 0.4])
def test_gradient_descent_rises_to_two_over_the_learning_rate_and_stays(
    tmp_path: Path, lr: float
):
    """In the median, and in nine of ten evaluations once the overshoot is over."""
    run = recorded(
        tmp_path / "run.zarr", "digits-tanh", lr=lr, sharpness_every=10, epochs=700
    )
    edge = analyzers.edge_of_stability(run)
    np.testing.assert_allclose(edge.threshold, 2 / lr, rtol=1e-6)
    # Progressive sharpening: from less than half, nearly monotonously.
    assert float(edge.ratio[0]) < 0.5
    rise = edge.ratio.sel(step=slice(20, float(edge.reached)))
    assert (rise.diff("step") > 0).all()
    assert abs(float(edge.ratio_median) - 1) < 0.1
    late = edge.ratio.sel(step=slice(450, None))
    assert len(late) == 25
    assert float((abs(late - 1) < 0.1).mean()) >= 0.9


@pytest.mark.slow
def test_slow_gradient_descent_stays_at_the_threshold_from_where_it_reaches_it(
    tmp_path: Path,
):
    """With 0.2 there is no overshoot that leaves the band."""
    run = recorded(
        tmp_path / "run.zarr", "digits-tanh", lr=0.2, sharpness_every=10, epochs=1800
    )
    edge = analyzers.edge_of_stability(run)
    assert float(edge.ratio[0]) < 0.5
    reached = edge.ratio.sel(step=slice(float(edge.reached), None))
    assert len(reached) >= 60
    np.testing.assert_allclose(reached, 1, atol=0.1)


@pytest.mark.slow
def test_adam_is_held_at_its_preconditioned_threshold(tmp_path: Path):
    run = recorded(
        tmp_path / "run.zarr",
        "digits-tanh",
        optimizer="adam",
        lr=4e-3,
        sharpness_every=10,
        epochs=500,
    )
    edge = analyzers.edge_of_stability(run)
    np.testing.assert_allclose(edge.threshold, 38 / 4e-3, rtol=1e-6)
    assert float(edge.ratio[0]) < 0.3
    assert abs(float(edge.ratio_median) - 1) < 0.1
    assert float(edge.share_near) > 0.8


@pytest.mark.slow
def test_noise_is_not_held_at_the_threshold(tmp_path: Path):
    run = recorded(
        tmp_path / "run.zarr",
        "digits-tanh",
        control="noise-gradients",
        sharpness_every=10,
        epochs=340,
    )
    edge = analyzers.edge_of_stability(run)
    assert float(edge.reached) < 300
    assert not float(edge.share_near) > 0.5
    assert float(edge.ratio[-1]) > 2


@pytest.mark.slow
def test_convolutions_before_normalisation_are_scale_invariant(tmp_path: Path):
    run = recorded(
        tmp_path / "run.zarr",
        "digits-resnet",
        optimizer="sgd",
        lr=0.05,
        weight_decay=0.0,
        epochs=2,
    )
    found = analyzers.scale_invariance(run).compute()
    is_convolution = np.array([len(shape) == 4 for shape in run.layout.shapes])
    assert is_convolution.sum() == 9
    np.testing.assert_array_equal(found.is_invariant, is_convolution)
    assert float(found.cosine_max.sel(layer="head.weight")) > 0.1
    growth = (found.growth / found.expected_growth).values[is_convolution]
    np.testing.assert_allclose(growth, 1, rtol=0.05)
