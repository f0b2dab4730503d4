"""Test ``analyzers.explorer.live.alerts``."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from analyzers.explorer.live.alerts import find_alerts

N_STEPS = 400


def calm() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    noise = np.exp(0.3 * rng.standard_normal(N_STEPS))
    return {
        "loss": np.geomspace(2, 0.05, N_STEPS) * noise,
        "grad_norm": 1.0 + noise,
        "update_norm": 0.1 * noise,
        "cosine": 0.1 * rng.standard_normal(N_STEPS),
    }


def kinds(columns: dict[str, Any], **options: Any) -> dict[str, int]:
    facts: dict[str, Any] = {"size": 1e6, "free": 1e12, "total": 1000} | options
    return {alert.kind: alert.step for alert in find_alerts(columns, **facts)}


def nan_gradient(columns: dict[str, Any]) -> None:
    columns["grad_norm"][250] = np.nan


def nan_loss(columns: dict[str, Any]) -> None:
    columns["loss"][251] = np.nan


def infinite_loss(columns: dict[str, Any]) -> None:
    columns["loss"][252] = np.inf


def explosion(columns: dict[str, Any]) -> None:
    columns["loss"][253:] *= 40


def zigzag(columns: dict[str, Any]) -> None:
    columns["cosine"][-90:] = -0.8


@pytest.mark.parametrize(
    ("damage", "kind", "step"),
    [
        (nan_gradient, "non-finite", 250),
        (nan_loss, "non-finite", 251),
        (infinite_loss, "non-finite", 252),
        (explosion, "blow-up", 253),
        (zigzag, "zigzag", N_STEPS - 100),
    ],
)
def test_trouble_is_found(damage: Callable[[Any], None], kind: str, step: int):
    columns = calm()
    damage(columns)
    assert kinds(columns) == {kind: step}


def test_all_that_is_not_finite_is_named():
    columns = calm()
    for name in ("grad_norm", "update_norm", "loss"):
        columns[name][80] = np.inf
    [alert] = find_alerts(columns, size=1e6, free=1e12, total=1000)
    assert alert.text == (
        "The gradient, the update and the loss of step 80 are not finite."
    )


def test_a_calm_run_gives_no_alert():
    assert kinds(calm()) == {}


def test_single_large_losses_are_no_blow_up():
    columns = calm()
    columns["loss"][100::50] *= 40
    assert kinds(columns) == {}


def test_the_first_steps_of_a_run_are_judged_too():
    columns = {name: values[:8] for name, values in calm().items()}
    assert kinds(columns) == {}
    assert kinds({name: values[:1] for name, values in columns.items()}) == {}


def test_a_loss_that_is_not_logged_in_every_step_is_no_trouble():
    columns = calm()
    columns["loss"][1::2] = np.nan
    assert kinds(columns) == {}
    columns["loss"][:] = np.nan
    assert kinds(columns) == {}


def test_the_disk_must_hold_the_rest_of_the_run():
    half = {"size": 2e9, "total": 2 * N_STEPS}
    assert kinds(calm(), **half, free=2.6e9) == {}
    assert kinds(calm(), **half, free=2.4e9) == {"disk": N_STEPS - 1}
    assert kinds(calm(), size=np.nan, free=np.nan) == {}
