"""Evaluate the table of statements on recorded runs."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import xarray as xr

from analyzers.geometry.stored import store_geometry
from analyzers.no_wrong_turns.claims.statistics import middle
from analyzers.no_wrong_turns.claims.table import CLAIMS, Claim
from analyzers.no_wrong_turns.claims.verdict import Measured, Verdict
from analyzers.no_wrong_turns.runs import TrainedRun, sweep

Geometry = Callable[[TrainedRun], xr.Dataset]


class Finding(NamedTuple):
    """A statement, its verdict, and the numbers or missing runs that explain the verdict."""

    claim: str
    figure: str  # number of the paper's figure, or "controls"
    verdict: Verdict
    numbers: str


def findings(runs: Sequence[TrainedRun]) -> list[Finding]:
    """Test all statements; a statement whose runs are missing is inconclusive."""

    @cache
    def geometry(run: TrainedRun) -> xr.Dataset:
        return store_geometry(run.run).compute()

    return [_finding(claim, runs, geometry) for claim in CLAIMS]


def _finding(claim: Claim, runs: Sequence[TrainedRun], geometry: Geometry) -> Finding:
    chosen = claim.runs.choose(runs)
    if not chosen:
        needs = f"Needs {claim.runs.needs}."
        return Finding(claim.text, claim.figure, "inconclusive", needs)
    measure = _measurement(claim, runs, list(chosen.values()), geometry)
    verdict, text = claim.criterion({label: measure(r) for label, r in chosen.items()})
    is_hidden = claim.is_hidden or (lambda *_: False)
    if verdict == "supported" and any(
        is_hidden(geometry(run), run.run) for run in chosen.values()
    ):
        verdict = "inconclusive"
    names = sorted({run.workload for run in chosen.values()})
    # If the labels of the numbers are workloads, the text names them already.
    if not all(name in text for name in names):
        text = f"{', '.join(names)}: {text}"
    return Finding(claim.text, claim.figure, verdict, text)


def _measurement(
    claim: Claim,
    runs: Sequence[TrainedRun],
    chosen: Sequence[TrainedRun],
    geometry: Geometry,
) -> Callable[[TrainedRun], Measured]:
    """Return a function that measures a run, including errors over seeds if requested."""
    shortest = min(run.run.n_epochs for run in chosen)

    def without_seeds(run: TrainedRun) -> Measured:
        n_epochs = shortest if claim.runs.is_until_shortest else run.run.n_epochs
        return claim.statistic(geometry(run), run.run, middle(n_epochs))

    # Prefer seeds of the same workloads to seeds of other workloads.
    workloads = {run.workload for run in chosen}
    same_workload = [run for run in runs if run.workload in workloads]
    seeds = sweep(same_workload, "seed") or sweep(runs, "seed")
    if not (claim.runs.has_seed_errors and seeds):
        return without_seeds
    values = np.array([without_seeds(run).value for run in seeds])
    relative = float(values.std(ddof=1) / abs(values.mean()))

    def with_seeds(run: TrainedRun) -> Measured:
        value, stderr = without_seeds(run)
        return Measured(value, float(np.hypot(stderr, relative * value)))

    return with_seeds
