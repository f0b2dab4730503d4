"""All statements, tested on the runs of a directory."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Final

import numpy as np
import xarray as xr

from analyzers.geometry.epoch_means import epoch_means
from analyzers.geometry.null import excess_gamma
from analyzers.geometry.stored import store_geometry
from analyzers.no_wrong_turns.claims.across_settings import (
    adam_is_below,
    adam_travels_further,
    adam_varies_less,
    budgets_agree,
    depth_raises_gamma,
    grows_with_batch_size,
    mlp_is_more_regular,
    momentum_matters_little,
    scales_with_root_of_batch_size,
    seeds_agree,
    width_matters_little,
)
from analyzers.no_wrong_turns.claims.controls import (
    exceeds_random_walk,
    noise_is_below_training,
    random_labels_are_positive,
)
from analyzers.no_wrong_turns.claims.mid_run import (
    mean_over,
    middle,
    relative_variance,
    variance_within_epochs,
)
from analyzers.no_wrong_turns.claims.single_runs import (
    Geometries,
    almost_none_negative,
    distance_is_negligible_late,
    is_negative_at_times,
    is_steady,
    lolr_follows_schedule,
)
from analyzers.no_wrong_turns.claims.verdict import UNKNOWN, Finding, Measured
from analyzers.no_wrong_turns.runs import (
    COUNTER_EXAMPLES,
    base_runs,
    data_sets,
    depths,
    family,
    mlp_and_resnet,
    scheduled,
    sweep,
    training,
    widths,
)
from trajstore.reading.run import Run

RANDOM_LABELS: Final = "random-labels"
NOISE: Final = "noise-gradients"
"""Names of controls."""


Of = Callable[[Run], Measured]
"""What is asked of a run."""


def findings(runs: Sequence[Run]) -> list[Finding]:
    """Test the statements on runs.

    Parameters
    ----------
    runs : sequence of trajstore.Run
        As returned by `analyzers.no_wrong_turns.runs.find_runs`.

    Returns
    -------
    list of Finding
        By figure. Statements without the runs they need are not decided, and say what
        they need.

    Notes
    -----
    Numbers of single runs have the errors that `analyzers.no_wrong_turns.claims.mid_run.mean_over`
    states, and the standard deviation over seeds, relative to the mean, where there are
    runs that differ in the seed.
    """
    geometry = cache(_geometry)
    found = [
        *_on_batch_sizes(runs, geometry),
        *_on_optimizers(runs, geometry),
        *_on_seeds_and_budgets(runs, geometry),
        *_on_models(runs, geometry),
        *_on_single_runs(runs, geometry),
        *_on_controls(runs, geometry),
    ]
    return sorted(found, key=lambda finding: finding.figure.zfill(2))


Geometry = Callable[[Run], xr.Dataset]


def _geometry(run: Run) -> xr.Dataset:
    return store_geometry(run).compute()


def _mid_run(geometry: Geometry, quantity: str) -> Of:
    return lambda run: mean_over(geometry(run), quantity, middle(run.n_epochs))


def _excess(geometry: Geometry) -> Of:
    def excess(run: Run) -> Measured:
        whole = geometry(run).assign(excess_gamma(geometry(run), run))
        return mean_over(whole, "excess", middle(run.n_epochs))

    return excess


def _from_start(geometry: Geometry) -> Of:
    """Return how far the end is from the start: the distance to x* at the first step."""

    def distance(run: Run) -> Measured:
        first = geometry(run).isel(step=0)
        return Measured(float(first["distance"]), float(first["distance_stderr"]))

    return distance


def _with_seeds(of: Of, runs: Sequence[Run], *, like: Sequence[Run]) -> Of:
    """Add to the errors how runs differ in the seed: those like `like`, or else others."""
    workloads = {training(run)["workload"] for run in like}
    of_like = [run for run in runs if training(run)["workload"] in workloads]
    seeds = of_like if sweep(of_like, "seed") else runs
    values = np.array([of(run).value for run in sweep(seeds, "seed")])
    relative = values.std(ddof=1) / abs(values.mean()) if len(values) > 1 else 0.0

    def with_seeds(run: Run) -> Measured:
        value, stderr = of(run)
        return Measured(value, float(np.hypot(stderr, relative * value)))

    return with_seeds


def _of(finding: Finding, runs: Sequence[Run], needs: str) -> Finding:
    """Say which workloads a finding is of, or what it needs if there is no run."""
    if not runs:
        return replace(finding, numbers=f"Needs {needs}.")
    names = sorted({training(run)["workload"] for run in runs})
    # Numbers of several workloads have names of their own.
    if all(name in finding.numbers for name in names):
        return finding
    return replace(finding, numbers=f"{', '.join(names)}: {finding.numbers}")


def _by(factor: str, chosen: Sequence[Run], of: Of) -> dict[Any, Measured]:
    """Ask runs of a sweep; of several with one setting, the one with the best score."""
    best = {training(run)[factor]: run for run in sorted(chosen, key=_score)}
    return {setting: of(best[setting]) for setting in sorted(best)}


def _score(run: Run) -> float:
    """Return how well a run did in the end: the larger, the better."""
    steps, last = run.steps, {"step": -1}
    for name, sign in (("val_accuracy", 1), ("val_loss", -1), ("loss", -1)):
        if name in steps and np.isfinite(value := float(steps[name].isel(last))):
            return sign * value
    return -np.inf


def _on_batch_sizes(runs: Sequence[Run], geometry: Geometry) -> list[Finding]:
    chosen = sweep(runs, "batch_size")
    of = _with_seeds(_mid_run(geometry, "gamma"), runs, like=chosen)
    gammas = _by("batch_size", chosen, of)
    needs = "runs that differ in the batch size"
    return [
        _of(grows_with_batch_size(gammas), chosen, needs),
        _of(scales_with_root_of_batch_size(gammas), chosen, needs),
    ]


def _on_optimizers(runs: Sequence[Run], geometry: Geometry) -> list[Finding]:
    chosen = sweep(runs, "optimizer")

    def ask(of: Of) -> dict[Any, Measured]:
        return _by("optimizer", chosen, _with_seeds(of, runs, like=chosen))

    def variance(run: Run) -> Measured:
        return variance_within_epochs(geometry(run), middle(run.n_epochs))

    gammas = ask(_mid_run(geometry, "gamma"))
    needs = "runs that differ in the optimizer, with SGD, momentum and Adam"
    return [
        _of(finding, chosen, needs)
        for finding in (
            adam_is_below(gammas),
            adam_varies_less(ask(variance)),
            momentum_matters_little(gammas),
            adam_travels_further(ask(_from_start(geometry))),
        )
    ]


def _on_seeds_and_budgets(runs: Sequence[Run], geometry: Geometry) -> list[Finding]:
    seeds, budgets = sweep(runs, "seed"), sweep(runs, "epochs")
    settings = {
        run.location: run
        for factor in ("batch_size", "optimizer")
        for run in sweep(runs, factor)
        if training(run)["workload"] in {training(seed)["workload"] for seed in seeds}
    }
    both = seeds if len(settings) > 1 else []
    shortest = min((run.n_epochs for run in budgets), default=0)
    found = []
    for quantity, of_seeds, of_budgets in (("gamma", "4", "4"), ("rsi", "10", "11")):
        of = _mid_run(geometry, quantity)
        before = _before(geometry, quantity, shortest)
        by_budget = _by("epochs", budgets, _with_seeds(before, runs, like=budgets))
        agree = seeds_agree(
            [of(run) for run in both],
            [of(run) for run in settings.values()],
            quantity=quantity,
            figure=of_seeds,
        )
        found += [
            _of(agree, both, "runs that differ in the seed, and in another setting"),
            _of(
                budgets_agree(by_budget, quantity=quantity, figure=of_budgets),
                budgets,
                "runs that differ in the number of epochs",
            ),
        ]
    return found


def _before(geometry: Geometry, quantity: str, n_epochs: int) -> Of:
    return lambda run: mean_over(geometry(run), quantity, middle(n_epochs))


def _on_models(runs: Sequence[Run], geometry: Geometry) -> list[Finding]:
    pair, by_depth, by_width = mlp_and_resnet(runs), depths(runs), widths(runs)
    wide = [run for both in by_width.values() for run in both]
    gamma = _with_seeds(_mid_run(geometry, "gamma"), runs, like=[*by_depth, *wide])

    def own(run: Run) -> Measured:
        return relative_variance(geometry(run), middle(run.n_epochs))

    variance = _with_seeds(own, runs, like=list(pair.values()))
    regular = mlp_is_more_regular({name: variance(run) for name, run in pair.items()})
    depth = depth_raises_gamma(
        {training(run)["workload"]: gamma(run) for run in by_depth}
    )
    width = width_matters_little(
        {name: (gamma(one), gamma(other)) for name, (one, other) in by_width.items()}
    )
    return [
        _of(regular, list(pair.values()), "an MLP and a ResNet on the same data"),
        _of(depth, by_depth, "ResNets of several depths"),
        _of(width, wide, "a ResNet of standard width and one of another"),
    ]


def _on_single_runs(runs: Sequence[Run], geometry: Geometry) -> list[Finding]:
    def ask(chosen: Iterable[Run]) -> Geometries:
        return {
            training(run)["workload"]: (geometry(run), run.n_epochs) for run in chosen
        }

    single = data_sets(runs)
    counter = [
        run for run in base_runs(runs).values() if family(run) in COUNTER_EXAMPLES
    ]
    constant = [run for run in single if training(run)["schedule"] == "constant"]
    falling = scheduled(runs)
    used = {
        training(run)["workload"]: _means_and_rate(geometry(run), run)
        for run in falling
    }
    networks = "a run of a network"
    cosine = "a run whose learning rate falls to zero"
    return [
        _of(almost_none_negative(ask(single)), single, networks),
        _of(is_steady(ask(single), quantity="gamma", figure="2"), single, networks),
        _of(
            is_steady(
                ask(constant),
                quantity="lolr",
                figure="3",
                where=" where the learning rate is constant",
            ),
            constant,
            "a run of constant learning rate",
        ),
        _of(lolr_follows_schedule(used), falling, cosine),
        _of(distance_is_negligible_late(ask(falling)), falling, cosine),
        _of(
            is_negative_at_times(ask(counter)),
            counter,
            "runs of the asymmetric linear model and the sinusoidal mixture",
        ),
    ]


def _means_and_rate(geometry: xr.Dataset, run: Run) -> tuple[xr.Dataset, xr.DataArray]:
    """Return means of epochs, and the mean rate used in them, but for the last."""
    before = slice(None, -1)
    rate = run.steps["lr"].compute().groupby("epoch").mean()
    return epoch_means(geometry).isel(epoch=before), rate.isel(epoch=before)


def _on_controls(runs: Sequence[Run], geometry: Geometry) -> list[Finding]:
    optimizers, controls = sweep(runs, "optimizer"), sweep(runs, "control")
    gamma = _with_seeds(_mid_run(geometry, "gamma"), runs, like=controls)
    by_control = _by("control", controls, gamma)
    excess = _with_seeds(_excess(geometry), runs, like=optimizers)
    walk = exceeds_random_walk(_by("optimizer", optimizers, excess))
    with_labels = [run for run in controls if training(run)["control"] == RANDOM_LABELS]
    with_noise = controls if NOISE in by_control else []
    labels = random_labels_are_positive(by_control.get(RANDOM_LABELS, UNKNOWN))
    return [
        _of(walk, optimizers, "a run of SGD, and of other optimizers"),
        _of(
            noise_is_below_training(
                {name: by_control[name] for name in ("none", NOISE) if with_noise}
            ),
            with_noise,
            "a run whose gradients are replaced by noise, and one like it",
        ),
        _of(labels, with_labels, "a run with random labels, and one like it"),
    ]
