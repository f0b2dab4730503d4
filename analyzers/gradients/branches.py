"""Compare a run with its branches, which have other learning rates."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import xarray as xr

from analyzers._engine.labels import describe
from analyzers.gradients.arrays.segments import (
    border_signs,
    find_segments,
    part_percentiles,
    running_median,
    step_kinds,
)
from analyzers.gradients.defaults import THRESHOLD, WINDOW
from analyzers.gradients.segments import (
    CRITERION,
    KIND_NAMES,
    SEGMENT_NAMES,
    check_criterion,
    check_smoothing,
    decreases,
    losses_of,
    shares,
    update_lengths,
)
from analyzers.gradients.zigzag import check_steps, zigzag
from trajstore.format.attrs import BRANCH
from trajstore.reading.accepts_path import RunLike, as_run
from trajstore.reading.run import Run
from trajstore.store.location import name_of

N_PARTS: Final = 30
"""Number of parts that each path is divided into, with the same number of steps each."""

EDGES: Final = np.linspace(-1, 1, 41)
"""Edges of the bins in the histogram of cosines."""

QUARTILES: Final = {"cosine": 50, "cosine_low": 25, "cosine_high": 75}

LONG_NAMES: Final = SEGMENT_NAMES | {
    "cosine": "median cosine of adjacent gradients in a part of the path",
    "cosine_low": "lower quartile of the cosine in a part of the path",
    "cosine_high": "upper quartile of the cosine in a part of the path",
    "path": "path length from the branching to the middle of the part",
    "lr_time": "sum of learning rates from the branching to the middle of the part",
    "histogram": "share of the steps in a bin of the cosine",
    "n_steps": "number of steps",
    "path_length": "length of the path",
}


def compare_branches(
    parent: RunLike,
    branches: Sequence[RunLike],
    *,
    window: int = WINDOW,
    threshold: float = THRESHOLD,
    loss: str | None = "loss",
    length: float | None = None,
) -> xr.Dataset:
    """Compare the cosines of adjacent gradients between a run and its branches.

    Parameters
    ----------
    parent : trajstore.Run, str or os.PathLike
        The run that the branches start from, or the path of its store; only its steps after the
        branching count.
    branches : sequence of trajstore.Run, str or os.PathLike
        Branches that ``traj-train branch`` recorded, all starting from the same epoch.
    window, threshold, loss
        As in `zigzag_segments`.
    length : float, optional
        Stop after this path length, to compare paths of equal length. The last step may
        exceed it.

    Returns
    -------
    xarray.Dataset
        Loaded, with the dimension ``branch``: the name of the parent's store, followed by the
        names of the branches in descending order of learning rate. The coordinate
        ``lr_scale`` holds the factor of the learning rate. Units are 1. The variables are

        - by ``part``, for 30 parts of each path with the same number of steps: the median
          ``cosine`` with its quartiles ``cosine_low`` and ``cosine_high``;
        - also by ``part``: the path length ``path`` and the sum of learning rates
          ``lr_time``, both from the branching to the middle of the part;
        - by ``cosine_bin``: ``histogram``, the share of steps in each bin;
        - by ``kind``, as in `zigzag_segments`: ``step_share``, ``path_share`` and, if there
          is a loss, ``decrease`` and ``decrease_share`` with their standard errors;
        - ``n_steps`` and ``path_length`` of the whole branch.

    Raises
    ------
    ValueError
        If there are no branches, if they belong to another parent or start from different
        epochs, or if a number is out of range.
    KeyError
        If a run has no scalar with the name `loss`.

    Notes
    -----
    This is our own protocol for the question whether zigzag geometry "appears over a wide
    range of geometrical scales", as the paper that `zigzag` cites says; the paper's
    protocol was not available. If the loss is smooth and the steps are short enough,
    gradients hardly change from step to step. Without the noise of mini-batches, the cosine
    is then near 1; with noise, it is near the share of the signal in :math:`|g|^2`. A zigzag
    that becomes smooth at a smaller learning rate came from steps that were too long for
    their valley; a zigzag that persists at all learning rates has another cause.

    The running median always covers `window` steps, and therefore a shorter piece of the
    path at a smaller learning rate. The cosine of a branch's first step is unknown.
    """
    whole, others = as_run(parent), [as_run(branch) for branch in branches]
    epoch, first = _beginning(whole, others)
    others.sort(key=lambda run: -run.attrs[BRANCH]["lr_scale"])
    check_criterion(window, threshold)
    if length is not None and not length > 0:
        raise ValueError(f"`length` must be positive, got {length}.")
    parts = [
        _summary(
            run,
            first=first if run is whole else 0,
            window=window,
            threshold=threshold,
            loss=loss,
            length=length,
        )
        for run in (whole, *others)
    ]
    names = [name_of(run.location) for run in (whole, *others)]
    factors = [1.0, *(float(run.attrs[BRANCH]["lr_scale"]) for run in others)]
    result = xr.concat(parts, BRANCH)
    result = result.assign_coords(
        {
            BRANCH: np.array(names, object),
            "lr_scale": (BRANCH, factors),
            "kind": KIND_NAMES,
        }
    )
    return result.assign_attrs(
        run=whole.location,
        epoch=epoch,
        criterion=CRITERION,
        window=window,
        threshold=threshold,
    )


def _beginning(parent: Run, branches: Sequence[Run]) -> tuple[int, int]:
    """Check the branches, and return the epoch that they start from and its first step."""
    if not branches:
        raise ValueError(
            f"No branches of {parent.location} were given; traj-train branch "
            f"{parent.location} --at-epoch EPOCH --lr-scale 0.1 records one."
        )
    check_steps(parent)
    for run in branches:
        check_steps(run)
        origin = run.attrs.get(BRANCH, {})
        if origin.get("parent_created") != parent.stored.document.created:
            kind = f"a branch of {origin['parent']}" if origin else "a run of its own"
            raise ValueError(
                f"{run.location} is not a branch of {parent.location}, but {kind}; "
                "give branches of this run, which traj-train branch records."
            )
    beginnings = {(b.attrs[BRANCH]["epoch"], b.attrs[BRANCH]["step"]) for b in branches}
    if len(beginnings) > 1:
        raise ValueError(
            f"The branches begin in the epochs {sorted(e for e, _ in beginnings)}; "
            "compare branches of one epoch at a time."
        )
    [(epoch, first)] = beginnings
    if first + 2 > parent.n_steps:
        raise ValueError(
            f"{parent.location} has {parent.n_steps} steps, and its branches begin with "
            f"step {first}; the parent needs two steps or more from that step on."
        )
    return epoch, first


def _summary(
    run: Run,
    *,
    first: int,
    window: int,
    threshold: float,
    loss: str | None,
    length: float | None,
) -> xr.Dataset:
    """Summarise the steps of a run, starting with `first`."""
    lengths = np.nan_to_num(update_lengths(run)[first:])
    before = np.cumsum(lengths) - lengths
    n = len(before) if length is None else int(np.searchsorted(before, length))
    steps = slice(first, first + n)
    cosine = zigzag(run)["cosine"].isel(step=steps).values
    # The gradient before the first step of a branch is not recorded.
    cosine[0] = np.nan
    lengths = lengths[:n]
    labels = step_kinds(running_median(cosine, window), threshold)
    rates = np.cumsum(run.steps["lr"].values[steps])
    middle = before[:n] + lengths / 2
    by_part = partial(part_percentiles, n_parts=N_PARTS)
    counts, _ = np.histogram(cosine[np.isfinite(cosine)], EDGES)
    variables: dict[str, Any] = {
        **{name: ("part", by_part(cosine, q)) for name, q in QUARTILES.items()},
        "path": ("part", by_part(middle, 50)),
        "lr_time": ("part", by_part(rates, 50)),
        "histogram": ("cosine_bin", counts / max(1, counts.sum())),
        "n_steps": n,
        "path_length": lengths.sum(),
        **shares(labels, lengths),
    }
    if loss is not None:
        signs = border_signs(find_segments(labels))
        losses = losses_of(run, loss)[steps]
        variables |= decreases(losses, signs, check_smoothing(run, None))
    dataset = xr.Dataset(variables, {"cosine_bin": (EDGES[1:] + EDGES[:-1]) / 2})
    return describe(dataset, LONG_NAMES)
