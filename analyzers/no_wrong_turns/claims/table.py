"""Table of the paper's statements, and of the runs and criteria that decide them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import xarray as xr

from analyzers.no_wrong_turns.claims.criteria import (
    SEED,
    SETTING,
    Criterion,
    alike,
    below,
    each_inside,
    exponent,
    increasing,
    largest,
    near_longest,
    positive,
    ratio_of,
    relative_to_standard_width,
    seeds_vary_less,
    smallest,
)
from analyzers.no_wrong_turns.claims.statistics import (
    Statistic,
    correlation_with_rate,
    distance_from_start,
    errors_hide_sign,
    excess_over_walk,
    largest_over_smallest,
    late_distance,
    mid_run,
    negative_share,
    relative_variance,
    variance_within_epochs,
)
from analyzers.no_wrong_turns.runs import (
    COUNTER_EXAMPLES,
    TrainedRun,
    base_runs,
    data_sets,
    depths,
    mlp_and_resnet,
    scheduled,
    sweep,
    widths,
)
from trajstore.reading.run import Run

Labelled = Mapping[Any, TrainedRun]

NOISE: Final = "noise-gradients"
RANDOM_LABELS: Final = "random-labels"

EXPONENT_RANGE: Final = (0.25, 0.75)
"""Range of exponents of the batch size that count as roughly one half."""

MAX_NEGATIVE_SHARE: Final = 0.01
"""Share of steps with a negative gamma that still counts as almost none."""

NEGATIVE_BY_CHANCE: Final = 0.023
"""Share of steps that chance puts more than two standard errors below zero if gamma is 0."""

MAX_STEADY_RATIO: Final = 2.0
"""Ratio of the largest to the smallest epoch mean below which a quantity is steady."""

MAX_LATE_DISTANCE: Final = 0.05
"""Distance to x*, relative to its initial value, that counts as negligible."""


class Selection(NamedTuple):
    """Choice of the runs that decide a statement."""

    choose: Callable[[Sequence[TrainedRun]], Labelled]
    needs: str  # description of the runs, shown if they are missing
    has_seed_errors: bool = True  # whether errors include the spread over seeds
    is_until_shortest: bool = False
    """Whether all runs are measured in the middle epochs of the shortest run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A statement, and the runs, statistic and criterion that decide it."""

    text: str
    figure: str
    runs: Selection
    statistic: Statistic
    criterion: Criterion
    # Whether the errors of a run are too large to support the statement.
    is_hidden: Callable[[xr.Dataset, Run], bool] | None = None


def _best_by(factor: str) -> Callable[[Sequence[TrainedRun]], Labelled]:
    """Return a function that chooses the best run for each value of a setting."""

    def choose(runs: Sequence[TrainedRun]) -> Labelled:
        chosen = sorted(sweep(runs, factor), key=_score)
        best = {run.settings[factor]: run for run in chosen}
        return {setting: best[setting] for setting in sorted(best)}

    return choose


def _score(run: TrainedRun) -> float:
    """Return a score of the final model of a run: the larger, the better."""
    steps, last = run.run.steps, {"step": -1}
    for name, sign in (("val_accuracy", 1), ("val_loss", -1), ("loss", -1)):
        if name in steps and np.isfinite(value := float(steps[name].isel(last))):
            return sign * value
    return -np.inf


def _by_workload(runs: Sequence[TrainedRun]) -> Labelled:
    return {run.workload: run for run in runs}


def _seeds_and_settings(runs: Sequence[TrainedRun]) -> Labelled:
    """Choose runs that differ in the seed, and sweeps of other settings of their workload."""
    seeds = sweep(runs, "seed")
    workloads = {run.workload for run in seeds}
    settings = [
        run
        for factor in ("batch_size", "optimizer")
        for run in sweep(runs, factor)
        if run.workload in workloads
    ]
    if len(set(settings)) < 2:
        return {}
    return {(SEED, run): run for run in seeds} | {(SETTING, r): r for r in settings}


def _of_widths(runs: Sequence[TrainedRun]) -> Labelled:
    return _by_workload([run for pair in widths(runs).values() for run in pair])


def _noise_and_training(runs: Sequence[TrainedRun]) -> Labelled:
    controls = _best_by("control")(runs)
    names = ("none", NOISE)
    return {n: controls[n] for n in names} if {*names} <= {*controls} else {}


def _random_labels(runs: Sequence[TrainedRun]) -> Labelled:
    controls = _best_by("control")(runs)
    return {"": controls[RANDOM_LABELS]} if RANDOM_LABELS in controls else {}


BATCH_SIZES: Final = Selection(
    _best_by("batch_size"), "runs that differ in the batch size"
)
OPTIMIZERS: Final = Selection(
    _best_by("optimizer"),
    "runs that differ in the optimizer: SGD, momentum and Adam",
)
SEEDS: Final = Selection(
    _seeds_and_settings,
    "runs that differ in the seed, and runs that differ in another setting",
    has_seed_errors=False,
)
BUDGETS: Final = Selection(
    _best_by("epochs"),
    "runs that differ in the number of epochs",
    is_until_shortest=True,
)
NETWORKS: Final = Selection(
    lambda runs: _by_workload(data_sets(runs)),
    "a run of a network",
    has_seed_errors=False,
)
CONSTANT_RATE: Final = Selection(
    lambda runs: _by_workload(
        [run for run in data_sets(runs) if run.settings["schedule"] == "constant"]
    ),
    "a run of constant learning rate",
    has_seed_errors=False,
)
FALLING_RATE: Final = Selection(
    lambda runs: _by_workload(scheduled(runs)),
    "a run whose learning rate falls to zero",
    has_seed_errors=False,
)

GAMMA: Final = mid_run("gamma")
RSI: Final = mid_run("rsi")

SEED_TEXT: Final = (
    "{} depends little on the seed: it varies less than half as much over seeds as over "
    "batch sizes and optimizers."
)
BUDGET_TEXT: Final = (
    "Before the end, {} depends little on the epoch budget: over the middle epochs of the "
    "shortest run, the means of runs with shorter budgets differ by less than a quarter "
    "from the mean of the longest run."
)
STEADY_TEXT: Final = (
    "{} is steady{}: the means of the middle epochs differ by less than a factor of "
    f"{MAX_STEADY_RATIO:g}."
)
STEADY: Final = each_inside("Largest over smallest: {}.", high=MAX_STEADY_RATIO)

CLAIMS: Final = (
    Claim(
        text="gamma is smaller for Adam than for SGD, with or without momentum.",
        figure="1",
        runs=OPTIMIZERS,
        statistic=GAMMA,
        criterion=below("adam", ("sgd", "momentum")),
    ),
    Claim(
        text="gamma varies less from step to step for Adam than for other optimizers.",
        figure="1",
        runs=OPTIMIZERS,
        statistic=variance_within_epochs,
        criterion=smallest("adam", "Variance within epochs: {}."),
    ),
    Claim(
        text="Momentum changes gamma little: by less than a quarter of its value for SGD.",
        figure="1",
        runs=OPTIMIZERS,
        statistic=GAMMA,
        criterion=alike("The ratio is {}.", of=ratio_of("momentum", "sgd")),
    ),
    Claim(
        text="gamma grows slightly with depth.",
        figure="1",
        runs=Selection(
            lambda runs: _by_workload(depths(runs)), "ResNets of several depths"
        ),
        statistic=GAMMA,
        criterion=increasing,
    ),
    Claim(
        text="Width matters little: a different width changes gamma by less than a quarter.",
        figure="1",
        runs=Selection(
            _of_widths, "a ResNet of standard width and one of another width"
        ),
        statistic=GAMMA,
        criterion=alike(
            "Relative to standard width: {}.", of=relative_to_standard_width
        ),
    ),
    Claim(
        text="Before the final epoch, almost no step has a negative gamma: fewer than 1 "
        "step in 100 is below zero by more than two standard errors.",
        figure="2",
        runs=NETWORKS,
        statistic=negative_share,
        criterion=each_inside(
            f"Shares: {{}}. Errors alone would give {NEGATIVE_BY_CHANCE} if gamma were 0.",
            high=MAX_NEGATIVE_SHARE,
        ),
        is_hidden=errors_hide_sign,
    ),
    Claim(
        text=STEADY_TEXT.format("gamma", ""),
        figure="2",
        runs=NETWORKS,
        statistic=largest_over_smallest("gamma"),
        criterion=STEADY,
    ),
    Claim(
        text=STEADY_TEXT.format("loLR", " if the learning rate is constant"),
        figure="3",
        runs=CONSTANT_RATE,
        statistic=largest_over_smallest("lolr"),
        criterion=STEADY,
    ),
    Claim(
        text="Under a schedule, the locally optimal learning rate is high when the rate "
        "used is high: their rank correlation over epochs is positive.",
        figure="3",
        runs=FALLING_RATE,
        statistic=correlation_with_rate,
        criterion=each_inside("Rank correlation: {}.", low=0),
    ),
    Claim(
        text=SEED_TEXT.format("gamma"),
        figure="4",
        runs=SEEDS,
        statistic=GAMMA,
        criterion=seeds_vary_less,
    ),
    Claim(
        text=BUDGET_TEXT.format("gamma"),
        figure="4",
        runs=BUDGETS,
        statistic=GAMMA,
        criterion=near_longest,
    ),
    Claim(
        text="The asymmetric linear model and the sinusoidal mixture sometimes have "
        "a negative gamma: at more steps than errors can explain.",
        figure="5",
        runs=Selection(
            lambda runs: _by_workload(
                [r for r in base_runs(runs).values() if r.family in COUNTER_EXAMPLES]
            ),
            "runs of the asymmetric linear model and the sinusoidal mixture",
            has_seed_errors=False,
        ),
        statistic=negative_share,
        criterion=each_inside("Shares of steps: {}.", low=NEGATIVE_BY_CHANCE),
    ),
    Claim(
        text="gamma grows with the batch size.",
        figure="6",
        runs=BATCH_SIZES,
        statistic=GAMMA,
        criterion=increasing,
    ),
    Claim(
        text="gamma scales roughly with the square root of the batch size: the exponent "
        f"lies between {EXPONENT_RANGE[0]} and {EXPONENT_RANGE[1]}.",
        figure="6",
        runs=BATCH_SIZES,
        statistic=GAMMA,
        criterion=each_inside(
            "The exponent is {}.",
            low=EXPONENT_RANGE[0],
            high=EXPONENT_RANGE[1],
            of=exponent,
        ),
    ),
    Claim(
        text=SEED_TEXT.format("RSI"),
        figure="10",
        runs=SEEDS,
        statistic=RSI,
        criterion=seeds_vary_less,
    ),
    Claim(
        text=BUDGET_TEXT.format("RSI"),
        figure="11",
        runs=BUDGETS,
        statistic=RSI,
        criterion=near_longest,
    ),
    Claim(
        text="Adam ends further from its start than SGD, with or without momentum.",
        figure="12",
        runs=OPTIMIZERS,
        statistic=distance_from_start,
        criterion=largest("adam", "Distance from the start: {}."),
    ),
    Claim(
        text="When the learning rate falls to zero, the distance to x* is negligible in "
        "the last seventh of the epochs: less than a twentieth of the initial distance.",
        figure="13",
        runs=FALLING_RATE,
        statistic=late_distance,
        criterion=each_inside("Relative to the start: {}.", high=MAX_LATE_DISTANCE),
    ),
    Claim(
        text="gamma is more regular for an MLP than for a ResNet: it varies less from "
        "step to step, relative to its mean.",
        figure="14",
        runs=Selection(mlp_and_resnet, "an MLP and a ResNet on the same data"),
        statistic=relative_variance,
        criterion=smallest("mlp", "Relative variance: {}."),
    ),
    Claim(
        text="Mid-run, gamma of SGD without momentum exceeds gamma of a random walk with "
        "the same step lengths; the walk's gamma is positive only because x* is its end.",
        figure="controls",
        runs=OPTIMIZERS._replace(needs="a run of SGD, and runs of other optimizers"),
        statistic=excess_over_walk,
        criterion=positive("sgd", "gamma minus gamma of the walk: {}."),
    ),
    Claim(
        text="gamma is smaller for gradients replaced by noise of the same norm than for "
        "the gradients of training.",
        figure="controls",
        runs=Selection(
            _noise_and_training,
            "a run whose gradients are replaced by noise, and the same run without noise",
        ),
        statistic=GAMMA,
        criterion=smallest(NOISE),
    ),
    Claim(
        text="gamma is also positive with random labels.",
        figure="controls",
        runs=Selection(
            _random_labels,
            "a run with random labels, and the same run with another control or none",
        ),
        statistic=GAMMA,
        criterion=positive("", "The mid-run mean is {}."),
    ),
)
"""All statements in the order of their figures."""
