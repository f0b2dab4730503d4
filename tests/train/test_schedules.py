"""Learning rates equal those of torch's schedulers, or closed forms."""

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from train.schedules import learning_rate
from train.settings import Training

SETTINGS = Training(
    workload="any",
    epochs=5,
    batch_size=1,
    optimizer="sgd",
    lr=0.3,
    schedule="one-cycle",
)


@pytest.mark.parametrize("steps_per_epoch", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_one_cycle_equals_torchs(optimizer: str, steps_per_epoch: int):
    # Torch's scheduler also changes the momentum, but this does not affect learning rates.
    optimizer_of_torch = getattr(torch.optim, optimizer)(
        [torch.nn.Parameter(torch.ones(1))], lr=1
    )
    total = 5 * steps_per_epoch
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer_of_torch, 0.3, total_steps=total
    )
    rates = []
    for step in range(total):
        rates.append(learning_rate(SETTINGS, step, steps_per_epoch))
        assert rates[-1] == pytest.approx(
            optimizer_of_torch.param_groups[0]["lr"], rel=1e-12
        )
        optimizer_of_torch.step()
        if step + 1 < total:
            scheduler.step()
    assert rates[-1] == pytest.approx(0.3 / 25 / 1e4)


def test_one_cycle_of_one_step_has_the_final_rate():
    single_step = replace(SETTINGS, epochs=1)
    assert learning_rate(single_step, 0, 1) == pytest.approx(0.3 / 25 / 1e4)


def test_decaying_rates_fall_with_the_power_of_three_quarters():
    decaying = replace(SETTINGS, schedule="decaying", lr=158.0)
    rates = [learning_rate(decaying, step, 100) for step in (0, 15, 255, 9999)]
    assert rates == pytest.approx([158, 158 / 8, 158 / 64, 158 / 1000])


@pytest.mark.parametrize("schedule", ["one-cycle", "decaying", "cosine"])
def test_schedules_begin_after_the_warm_up(schedule: Any):
    warm = replace(SETTINGS, schedule=schedule, warmup_epochs=2)
    rise = [learning_rate(warm, step, 10) for step in range(20)]
    assert rise == pytest.approx([0.3 * (k + 1) / 20 for k in range(20)])
    # The other three epochs follow the schedule of a run of three epochs.
    cold = replace(warm, warmup_epochs=0, epochs=3)
    for step in range(30):
        expected = learning_rate(cold, step, 10)
        assert learning_rate(warm, step + 20, 10) == pytest.approx(expected)
