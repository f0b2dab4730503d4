"""Test ``analyzers.curvature.edge_of_stability`` with optimizers at their thresholds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import analyzers
from tests.analyzers.curvature.networks import record_network
from trajstore.reading.run import open_run

torch = pytest.importorskip("torch")

from trajstore import Recorder

LR = 0.1
OPTIMIZERS: dict[str, tuple[dict[str, Any], Callable[..., Any]]] = {
    "gradient descent": ({}, torch.optim.SGD),
    "heavy ball": ({"momentum": 0.9}, torch.optim.SGD),
    "heavy ball, 0.5": ({"momentum": 0.5}, torch.optim.SGD),
    "nesterov": (
        {"momentum": 0.9, "optimizer": "nesterov"},
        lambda *a, **k: torch.optim.SGD(*a, nesterov=True, **k),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_diverge_only_above_the_threshold(name: str):
    options, make = OPTIMIZERS[name]
    threshold = analyzers.stability_threshold(LR, **options)
    momentum = {k: v for k, v in options.items() if k == "momentum"}

    def end(curvature: float) -> float:
        x = torch.ones(1, dtype=torch.float64, requires_grad=True)
        optimizer = make([x], lr=LR, **momentum)
        for _ in range(2000):
            optimizer.zero_grad()
            (0.5 * curvature * x.square()).sum().backward()
            optimizer.step()
        return abs(float(x.detach()))

    assert end(0.99 * threshold) < 1e-3
    assert end(1.01 * threshold) > 1e3


def test_adam_with_a_constant_preconditioner_diverges_above_the_threshold():
    def end(ratio: float) -> float:
        x, m = 1.0, 0.0
        curvature = ratio * analyzers.stability_threshold(
            LR, momentum=0.9, optimizer="adam"
        )
        for _ in range(4000):
            m = 0.9 * m + 0.1 * curvature * x
            x -= LR * m
        return abs(x)

    assert end(0.99) < 1e-3
    assert end(1.01) > 1e3


def test_thresholds_take_a_rate_for_every_step():
    rates = xr.DataArray([0.5, 1.0], dims="step")
    found = analyzers.stability_threshold(rates, momentum=0.5)
    np.testing.assert_allclose(found, [6.0, 3.0])


def test_unknown_momentum_and_optimizer_are_refused():
    with pytest.raises(ValueError, match="from 0 to below 1, got 1"):
        analyzers.stability_threshold(0.1, momentum=1)
    with pytest.raises(ValueError, match="'nesterov' or 'adam', got 'lion'"):
        analyzers.stability_threshold(0.1, optimizer="lion")  # type: ignore[arg-type]


SHARPNESS = [5.0, 15.0, 21.0, 17.0, 19.0, 23.0]


class Own(torch.optim.SGD):  # type: ignore[misc, name-defined]
    """An optimizer that the analysis does not know."""


def record(
    path: Path,
    *,
    log: str = "sharpness",
    kind: Any = torch.optim.SGD,
    momentum: float = 0.0,
    **attrs: Any,
) -> None:
    """Record the sharpness at every other step, with the learning rate 0.1, later 0.2."""
    model = torch.nn.Linear(3, 1)
    optimizer = kind(model.parameters(), lr=0.1, momentum=momentum)
    with Recorder(path, model, optimizer, steps_per_epoch=4, attrs=attrs) as recorder:
        for step in range(12):
            optimizer.param_groups[0]["lr"] = 0.1 if step < 10 else 0.2
            optimizer.zero_grad()
            model(torch.ones(1, 3)).sum().backward()
            if step % 2 == 0:
                recorder.log(**{log: SHARPNESS[step // 2]})
            optimizer.step()


def test_ratios_belong_to_the_evaluated_steps(tmp_path: Path):
    record(tmp_path / "run.zarr", training={"optimizer": "sgd"})
    found = analyzers.edge_of_stability(open_run(tmp_path / "run.zarr"))
    np.testing.assert_array_equal(found.step, range(0, 12, 2))
    np.testing.assert_allclose(found.threshold, [20, 20, 20, 20, 20, 10], rtol=1e-6)
    np.testing.assert_allclose(
        found.ratio, [0.25, 0.75, 1.05, 0.85, 0.95, 2.3], rtol=1e-6
    )
    assert found.sel(epoch=1).sizes["step"] == 2
    # From step 4 on, the ratios are 1.05, 0.85, 0.95 and 2.3.
    assert float(found.reached) == 4
    np.testing.assert_allclose(float(found.ratio_median), 1.0, rtol=1e-6)
    np.testing.assert_allclose(float(found.ratio_min), 0.85, rtol=1e-6)
    np.testing.assert_allclose(float(found.ratio_max), 2.3, rtol=1e-6)
    assert float(found.share_near) == 0.5


@pytest.mark.parametrize(
    ("attrs", "options", "factor", "log"),
    [
        ({"optimizer": "momentum"}, {}, 3.8, "sharpness"),
        ({"optimizer": "momentum"}, {"optimizer": "sgd"}, 3.8, "sharpness"),
        ({"optimizer": "adam"}, {}, 38.0, "preconditioned_sharpness"),
        ({"optimizer": "adam"}, {"momentum": 0.5}, 6.0, "preconditioned_sharpness"),
        ({"optimizer": "adam"}, {"optimizer": "sgd"}, 2.0, "sharpness"),
        ({}, {"optimizer": "nesterov", "momentum": 0.9}, 3.8 / 2.8, "sharpness"),
    ],
)
def test_the_threshold_matches_the_optimizer(
    tmp_path: Path,
    attrs: dict[str, str],
    options: dict[str, Any],
    factor: float,
    log: str,
):
    record(tmp_path / "run.zarr", log=log, training=attrs)
    found = analyzers.edge_of_stability(open_run(tmp_path / "run.zarr"), **options)
    np.testing.assert_allclose(found.threshold[0], factor / 0.1, rtol=1e-6)
    assert found.attrs["recorded_as"] == log


def test_the_store_knows_the_momentum_of_its_optimizer(tmp_path: Path):
    record(tmp_path / "run.zarr", momentum=0.5)
    run = open_run(tmp_path / "run.zarr")
    for found in (
        analyzers.edge_of_stability(run),
        analyzers.edge_of_stability(run, optimizer="sgd"),
    ):
        np.testing.assert_allclose(found.threshold[0], 3.0 / 0.1, rtol=1e-6)


def test_a_threshold_that_is_never_reached_has_no_summary(tmp_path: Path):
    record(tmp_path / "run.zarr", log="preconditioned_sharpness")
    found = analyzers.edge_of_stability(
        open_run(tmp_path / "run.zarr"), optimizer="adam"
    )
    assert float(found.ratio.max()) < 1
    for name in ("reached", "ratio_median", "ratio_min", "ratio_max", "share_near"):
        assert np.isnan(float(found[name])), name


def test_errors_say_what_to_do(tmp_path: Path, example_run: Path):
    with pytest.raises(KeyError, match=r"No sharpness.*--sharpness-every"):
        analyzers.edge_of_stability(open_run(example_run), optimizer="sgd")
    with pytest.raises(KeyError, match=r"recorder.log\(preconditioned_sharpness"):
        analyzers.edge_of_stability(open_run(example_run), optimizer="adam")
    record(tmp_path / "run.zarr", kind=Own)
    with pytest.raises(ValueError, match="by which optimizer it was trained; give"):
        analyzers.edge_of_stability(open_run(tmp_path / "run.zarr"))


@pytest.mark.slow
@pytest.mark.parametrize("lr", [0.3, 0.4])
def test_gradient_descent_rises_to_two_over_the_learning_rate_and_stays(
    tmp_path: Path, lr: float
):
    """Check the median, and nine of ten evaluations after the overshoot."""
    run = record_network(
        tmp_path / "run.zarr", "digits-tanh", lr=lr, sharpness_every=10, epochs=700
    )
    edge = analyzers.edge_of_stability(run)
    np.testing.assert_allclose(edge.threshold, 2 / lr, rtol=1e-6)
    # Progressive sharpening: the ratio rises from below one half, almost monotonically.
    assert float(edge.ratio[0]) < 0.5
    rise = edge.ratio.sel(step=slice(20, float(edge.reached)))
    assert (rise.diff("step") > 0).all()
    assert abs(float(edge.ratio_median) - 1) < 0.1
    late = edge.ratio.sel(step=slice(450, None))
    assert len(late) == 25
    assert float((abs(late - 1) < 0.1).mean()) >= 0.9


@pytest.mark.slow
def test_slow_gradient_descent_stays_at_the_threshold_once_it_reaches_it(
    tmp_path: Path,
):
    """With a learning rate of 0.2, the ratio does not overshoot beyond the band."""
    run = record_network(
        tmp_path / "run.zarr", "digits-tanh", lr=0.2, sharpness_every=10, epochs=1800
    )
    edge = analyzers.edge_of_stability(run)
    assert float(edge.ratio[0]) < 0.5
    reached = edge.ratio.sel(step=slice(float(edge.reached), None))
    assert len(reached) >= 60
    np.testing.assert_allclose(reached, 1, atol=0.1)


@pytest.mark.slow
def test_adam_is_held_at_its_preconditioned_threshold(tmp_path: Path):
    run = record_network(
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
    run = record_network(
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
