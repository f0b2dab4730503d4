"""Read the errors of a recorded run, from which a plan of a similar run extrapolates."""

from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from trajstore.planning.errors import Rate, Recorded
from trajstore.planning.estimate import Plan
from trajstore.planning.measured import Optimizer
from trajstore.reading.results import results_location
from trajstore.reading.run import Run
from trajstore.reading.stored_results import ExpectedArray, open_arrays

GROUP: Final = "final"
"""Group of results that holds the geometry relative to the last iterate."""

STDERR: Final = "gamma_stderr"

COVARIANCE: Final = "gamma_covariance"
"""Covariance of a step's error with the sum of the errors of all steps in the same epoch."""

SGD: Final = "torch.optim.sgd.SGD"


def recorded_errors(run: Run, *, rate: Rate) -> Recorded:
    """Return the errors of gamma in a run whose geometry is stored, and those of its plan."""
    if run.spec.exact:
        raise ValueError(
            f"{run.location} was recorded exactly, so it says nothing of the errors of sketches: "
            "give a run that was recorded with a sketch."
        )
    n, every = run.n_steps, run.spec.steps_per_epoch
    names = (STDERR, COVARIANCE)
    stored = open_arrays(
        results_location(run), GROUP, dict.fromkeys(names, ExpectedArray((n,)))
    )
    if stored is None:
        raise ValueError(
            f"There is no stored geometry of {run.location}, which tells its errors: run "
            f"`traj-analyze geometry {run.location}` first."
        )
    stderr, covariance = (np.asarray(stored[name][:], np.float64) for name in names)
    plan = Plan(
        spec=replace(run.spec, total_steps=n), rate=rate, optimizer=optimizer_of(run)
    )
    # The steps of the middle, without the first and the last epoch or window.
    edge = min(every or plan.windows.length, n // 4)
    middle = slice(edge, n - edge)
    step, mean, planned_mean = _rms(np.square(stderr[middle])), None, None
    if every is not None and n >= 3 * every:
        whole = covariance[every : n // every * every - every].reshape(-1, every)
        mean = _rms(whole.sum(1) / every**2)
        planned_mean = plan.stderr(mean_of=every)
    if not (step > 0 and (mean is None or mean > 0)):
        raise ValueError(
            f"The stored geometry of {run.location} has no errors in the middle of the run: "
            "they are 0 or not known."
        )
    return Recorded(step, mean, plan.stderr(), planned_mean)


def optimizer_of(run: Run) -> Optimizer:
    """Return the kind of optimizer that trained a run."""
    facts = [group for group in run.stored.document.optimizer if group.tensors]
    if not facts or any(group.optimizer != SGD for group in facts):
        return "adaptive"
    settings = [changed for group in facts for _, changed in group.settings]
    return "momentum" if any(s.get("momentum") for s in settings) else "sgd"


def _rms(variances: npt.NDArray[np.float64]) -> float:
    """Return the root of the mean of the variances that are known, 0 without any."""
    known = variances[np.isfinite(variances)]
    return float(np.sqrt(np.maximum(known.mean(), 0))) if len(known) else 0.0
