"""The plan that takes least, or errs least, over numbers of signs and window lengths."""

from collections.abc import Iterator
from typing import Final

from rich.filesize import decimal

from trajstore.format.layout import Layout
from trajstore.format.run_spec import BASIS
from trajstore.planning.estimate import Plan, plan_recording

SIGNS: Final = tuple(1 << k for k in range(12, 25))
"""Numbers of signs to choose from; measured up to 2**18."""

SHARES: Final = (0.01, 0.02, 0.04, 0.08, 0.16)
"""Lengths of windows to choose from, as shares of the run."""


def smallest_plan(
    layout: Layout,
    *,
    n_steps: int,
    steps_per_epoch: int | None = None,
    basis: int = BASIS,
    stderr: float,
) -> Plan:
    """Find the smallest store with which gamma is as precise as asked for.

    Parameters
    ----------
    layout : Layout
        The recorded parameters.
    n_steps, steps_per_epoch, basis
        See `plan_recording`.
    stderr : float
        Largest typical standard error of gamma in one step, mid-run.

    Returns
    -------
    Plan
        The smallest over all numbers of signs and lengths of windows.

    Raises
    ------
    ValueError
        If no plan is as precise; says how precise one can be.
    """
    plans = list(_candidates(layout, n_steps, steps_per_epoch, basis))
    precise = [plan for plan in plans if plan.stderr().typical <= stderr]
    if not precise:
        best = min(plans, key=_error_first)
        exact = plan_recording(layout, n_steps=n_steps, exact=True)
        raise ValueError(
            f"A standard error of {stderr:.3g} is out of reach: {max(SIGNS)} signs a step "
            f"bring about {best.stderr().typical:.2g}, in {decimal(round(best.disk))}. Ask for "
            "that or more, or record with exact=True, which has no error and takes "
            f"{decimal(round(exact.disk))}."
        )
    return min(precise, key=_disk_first)


def most_precise_plan(
    layout: Layout,
    *,
    n_steps: int,
    steps_per_epoch: int | None = None,
    basis: int = BASIS,
    disk: float,
) -> Plan:
    """Find the plan of the smallest error that fits on a disk.

    Parameters
    ----------
    layout : Layout
        The recorded parameters.
    n_steps, steps_per_epoch, basis
        See `plan_recording`.
    disk : float
        Bytes that the store may take.

    Returns
    -------
    Plan
        The most precise over all numbers of signs and lengths of windows.

    Raises
    ------
    ValueError
        If no plan is as small; says how small one can be.
    """
    plans = list(_candidates(layout, n_steps, steps_per_epoch, basis))
    small = [plan for plan in plans if plan.disk <= disk]
    if not small:
        least = min(plans, key=_disk_first)
        raise ValueError(
            f"{decimal(round(disk))} are too little: the smallest store of this run takes about "
            f"{decimal(round(least.disk))}, with {least.spec.sketch_bits} signs a step."
        )
    return min(small, key=_error_first)


def _candidates(
    layout: Layout, n_steps: int, steps_per_epoch: int | None, basis: int
) -> Iterator[Plan]:
    """Every number of signs with every length of windows."""
    # Refuses what is out of range before anything is divided by it.
    plan_recording(
        layout, n_steps=n_steps, steps_per_epoch=steps_per_epoch, basis=basis
    )
    lengths = {_whole_epochs(n_steps * share, steps_per_epoch) for share in SHARES}
    for reference_every in sorted(lengths):
        for sketch_bits in SIGNS:
            yield plan_recording(
                layout,
                n_steps=n_steps,
                steps_per_epoch=steps_per_epoch,
                sketch_bits=sketch_bits,
                basis=basis,
                reference_every=reference_every,
            )


def _whole_epochs(length: float, steps_per_epoch: int | None) -> int:
    """Round to epochs or equal parts of one, so that epochs begin with references."""
    if steps_per_epoch is None:
        return max(1, round(length))
    if length >= steps_per_epoch:
        return round(length / steps_per_epoch) * steps_per_epoch
    return -(-steps_per_epoch // round(steps_per_epoch / max(1.0, length)))


def _disk_first(plan: Plan) -> tuple[float, float]:
    return plan.disk, plan.stderr().typical


def _error_first(plan: Plan) -> tuple[float, float]:
    return plan.stderr().typical, plan.disk
