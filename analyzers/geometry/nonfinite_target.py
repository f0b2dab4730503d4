"""Find targets that are not finite, and the anchors to use instead."""

import numpy as np

from analyzers._engine.slices import slices
from trajstore.reading.run import Run
from trajstore.reading.target import (
    AT_STEP,
    PART,
    Target,
    find_target,
    last_finite_start,
    reached_finitely,
)


def nonfinite_target(run: Run, target: Target) -> str:
    """Say that a target is not finite, and which one to use; "" if it is finite."""
    if _is_finite(target, run.layout.size):
        return ""
    problem = (
        f"The target x* of {run.location} is not finite ({target.note}), so nothing can be "
        "measured relative to it."
    )
    start = last_finite_start(run)
    if (
        start is None
        or target.at is None
        or target.at[0].location != run.location
        or reached_finitely(run, target.at[1])
    ):
        return f"{problem} Give another target."
    step, n_steps = start, run.stored.step_rows.n_rows
    while step < n_steps and reached_finitely(run, step):
        step += 1
    return (
        f"{problem} The parameters are not finite from step {step} on. Use "
        f'reference="{AT_STEP}{start}", the last anchor before that step.'
    )


def default_reference(run: Run) -> str:
    """Return the target of a run that nobody has named, as the command line writes it."""
    if run.has_final:
        if not nonfinite_target(run, find_target(run, "final")):
            return "final"
    elif epoch := max(run.stored.epoch_windows, default=0):
        return str(epoch)
    start = last_finite_start(run)
    if start is None:
        raise ValueError(
            f"{run.location} has no last iterate and no anchor. Give another target x*, such as "
            "the path of another run."
        )
    return f"{AT_STEP}{start}"


def _is_finite(target: Target, size: int) -> bool:
    """Whether all elements of a target are finite."""
    if target.values is not None:
        return bool(np.isfinite(target.values).all())
    # A stored row shows that a point is finite. The point itself is read only without such a row.
    if target.at is None or reached_finitely(*target.at):
        return True
    return not target.is_anchor and all(
        np.isfinite(target.read(part)).all() for part in slices(slice(0, size), PART)
    )
