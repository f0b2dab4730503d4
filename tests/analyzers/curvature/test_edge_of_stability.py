"""Test ``analyzers.edge_of_stability``: thresholds by optimizers that run on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import analyzers
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
def test_optimizers_diverge_just_above_the_threshold_only(name: str):
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


def test_adam_with_a_preconditioner_that_stands_still_diverges_above_the_threshold():
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


def test_what_is_no_momentum_or_optimizer_is_refused():
    with pytest.raises(ValueError, match="from 0 to below 1, got 1"):
        analyzers.stability_threshold(0.1, momentum=1)
    with pytest.raises(ValueError, match="'nesterov' or 'adam', got 'lion'"):
        analyzers.stability_threshold(0.1, optimizer="lion")  # type: ignore[arg-type]


SHARPNESS = [5.0, 15.0, 21.0, 17.0, 19.0, 23.0]


def record(path: Path, *, log: str = "sharpness", **attrs: Any) -> None:
    """Record sharpness at every other step, at learning rates 0.1 and then 0.2."""
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(path, model, optimizer, steps_per_epoch=4, attrs=attrs) as recorder:
        for step in range(12):
            optimizer.param_groups[0]["lr"] = 0.1 if step < 10 else 0.2
            optimizer.zero_grad()
            model(torch.ones(1, 3)).sum().backward()
            if step % 2 == 0:
                recorder.log(**{log: SHARPNESS[step // 2]})
            optimizer.step()


def test_ratios_are_those_of_the_steps_that_were_evaluated(tmp_path: Path):
    record(tmp_path / "run.zarr", training={"optimizer": "sgd"})
    found = analyzers.edge_of_stability(open_run(tmp_path / "run.zarr"))
    np.testing.assert_array_equal(found.step, range(0, 12, 2))
    np.testing.assert_allclose(found.threshold, [20, 20, 20, 20, 20, 10], rtol=1e-6)
    np.testing.assert_allclose(
        found.ratio, [0.25, 0.75, 1.05, 0.85, 0.95, 2.3], rtol=1e-6
    )
    assert found.sel(epoch=1).sizes["step"] == 2
    # From step 4 on 1.05, 0.85, 0.95 and 2.3.
    assert float(found.reached) == 4
    np.testing.assert_allclose(float(found.ratio_median), 1.0, rtol=1e-6)
    np.testing.assert_allclose(float(found.ratio_min), 0.85, rtol=1e-6)
    np.testing.assert_allclose(float(found.ratio_max), 2.3, rtol=1e-6)
    assert float(found.share_near) == 0.5


@pytest.mark.parametrize(
    ("attrs", "options", "factor", "log"),
    [
        ({"optimizer": "momentum"}, {}, 3.8, "sharpness"),
        ({"optimizer": "adam"}, {}, 38.0, "preconditioned_sharpness"),
        ({"optimizer": "adam"}, {"momentum": 0.5}, 6.0, "preconditioned_sharpness"),
        ({"optimizer": "adam"}, {"optimizer": "sgd"}, 2.0, "sharpness"),
        ({}, {"optimizer": "nesterov", "momentum": 0.9}, 3.8 / 2.8, "sharpness"),
    ],
)
def test_the_threshold_is_that_of_the_optimizer(
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


def test_a_threshold_that_is_never_reached_has_no_summary(tmp_path: Path):
    record(tmp_path / "run.zarr", log="preconditioned_sharpness")
    found = analyzers.edge_of_stability(
        open_run(tmp_path / "run.zarr"), optimizer="adam"
    )
    assert float(found.ratio.max()) < 1
    for name in ("reached", "ratio_median", "ratio_min", "ratio_max", "share_near"):
        assert np.isnan(float(found[name])), name


def test_errors_name_what_to_do(tmp_path: Path, example_run: Path):
    with pytest.raises(KeyError, match=r"No sharpness.*--sharpness-every"):
        analyzers.edge_of_stability(open_run(example_run), optimizer="sgd")
    with pytest.raises(KeyError, match=r"recorder.log\(preconditioned_sharpness"):
        analyzers.edge_of_stability(open_run(example_run), optimizer="adam")
    record(tmp_path / "run.zarr")
    with pytest.raises(ValueError, match="by which optimizer it was trained; give"):
        analyzers.edge_of_stability(open_run(tmp_path / "run.zarr"))
