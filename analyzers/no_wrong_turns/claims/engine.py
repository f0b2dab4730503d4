"""Evaluate the table of statements on the runs of a directory."""

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
    """A statement, its verdict, and the numbers behind it or the runs it needs."""

    claim: str
    figure: str  # number of the paper's figure, or "controls"
    verdict: Verdict
    numbers: str


def findings(runs: Sequence[TrainedRun]) -> list[Finding]:
    """Test all statements; those without the runs they need are inconclusive."""

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
    # Numbers of several workloads are labelled with them.
    if not all(name in text for name in names):
        text = f"{', '.join(names)}: {text}"
    return Finding(claim.text, claim.figure, verdict, text)


def _measurement(
    claim: Claim,
    runs: Sequence[TrainedRun],
    chosen: Sequence[TrainedRun],
    geometry: Geometry,
) -> Callable[[TrainedRun], Measured]:
    """Return the statistic as a function of the run, with errors over seeds if wanted."""
    shortest = min(run.run.n_epochs for run in chosen)

    def own(run: TrainedRun) -> Measured:
        n_epochs = shortest if claim.runs.is_until_shortest else run.run.n_epochs
        return claim.statistic(geometry(run), run.run, middle(n_epochs))

    # Seeds of the same workloads, or else of any others.
    workloads = {run.workload for run in chosen}
    alike = [run for run in runs if run.workload in workloads]
    seeds = sweep(alike, "seed") or sweep(runs, "seed")
    if not (claim.runs.has_seed_errors and seeds):
        return own
    values = np.array([own(run).value for run in seeds])
    relative = float(values.std(ddof=1) / abs(values.mean()))

    def with_seeds(run: TrainedRun) -> Measured:
        value, stderr = own(run)
        return Measured(value, float(np.hypot(stderr, relative * value)))

    return with_seeds
