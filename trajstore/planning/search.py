"""Find the number of signs and the window length of the smallest or most precise plan."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from rich.filesize import decimal

from trajstore.format.layout import Layout
from trajstore.format.run_spec import BASIS, PROBES
from trajstore.format.windows import Windows
from trajstore.planning.errors import Rate
from trajstore.planning.estimate import Plan, is_sgd, plan_recording
from trajstore.planning.measured import Optimizer
from trajstore.planning.similar import Recorded
from trajstore.sketch.window_sum import with_window_sums

SIGNS: Final = tuple(1 << k for k in range(12, 25))
"""Candidate numbers of signs; errors were measured up to 2**18."""

SHARES: Final = (0.01, 0.02, 0.04, 0.08, 0.16)
"""Candidate lengths of windows, as fractions of the run."""

LONG_SHARES: Final = (0.04, 0.08, 0.16)
"""Lengths of windows to propose if anchors take most of a store, as fractions of the run."""

MOST: Final = 0.5
"""Share of a store that anchors take at most, unless longer windows are proposed."""


def best_plan(
    layout: Layout,
    *,
    n_steps: int,
    steps_per_epoch: int | None = None,
    basis: int = BASIS,
    probes: int = PROBES,
    reference_every: int | None = None,
    float64: bool = False,
    rate: Rate = "constant",
    optimizer: Optimizer | None = None,
    like: Recorded | None = None,
    stderr: float | None = None,
    disk: float | None = None,
) -> Plan:
    """Return the smallest plan that meets `stderr`, or the most precise that fits in `disk`."""
    # `stderr` bounds the typical standard error of gamma in one step, mid-run; `disk` bounds
    # the size of the store in bytes.
    assert (stderr is None) != (disk is None)
    make_plan = partial(
        plan_recording,
        layout,
        n_steps=n_steps,
        steps_per_epoch=steps_per_epoch,
        basis=basis,
        probes=probes,
        float64=float64,
        rate=rate,
        optimizer=optimizer,
        like=like,
    )
    lengths: Sequence[int | None] = [reference_every]
    if reference_every is None:
        # Raise SchemaError for values out of range before they are used as divisors.
        make_plan()
        lengths = sorted({fit_to_epochs(n_steps * s, steps_per_epoch) for s in SHARES})
    scored = [
        ((plan.disk, plan.stderr().typical), plan)
        for plan in _candidates(make_plan, lengths)
    ]
    by_disk = sorted(scored, key=lambda item: item[0])
    by_error = sorted(scored, key=lambda item: item[0][::-1])
    if stderr is not None:
        for (_, error), plan in by_disk:
            if error <= stderr:
                return plan
        exact = plan_recording(layout, n_steps=n_steps, exact=True, float64=float64)
        (size, error), _ = by_error[0]
        raise ValueError(
            f"A standard error of {stderr:.3g} is out of reach: even {max(SIGNS)} signs per "
            f"step give {error:.2g}, in a store of {decimal(round(size))}. Allow a larger "
            "error, or record with exact=True, which has no error, in a store of "
            f"{decimal(round(exact.disk))}."
        )
    assert disk is not None
    for (size, _), plan in by_error:
        if size <= disk:
            return plan
    (size, _), smallest = by_disk[0]
    raise ValueError(
        f"{decimal(round(disk))} is too small: the smallest store of this run has about "
        f"{decimal(round(size))}, with {smallest.spec.sketch_bits} signs per step."
    )


def with_longer_windows(plan: Plan) -> Plan | None:
    """Return a plan whose anchors take less than most of its store, as far as longer windows help."""
    if plan.share_of_anchors <= MOST:
        return None
    longer = None
    for share in LONG_SHARES:
        length = fit_to_epochs(plan.n_steps * share, plan.spec.steps_per_epoch)
        if length <= plan.windows.length:
            continue
        spec = replace(
            plan.spec, reference_every=length, shared_epochs=1, window_steps=None
        )
        spec = with_window_sums(spec, Windows.of(spec), is_sgd=is_sgd(plan.optimizer))
        longer = replace(plan, spec=spec, windows_reason="")
        if longer.share_of_anchors <= MOST:
            break
    return longer


def _candidates(
    make_plan: Callable[..., Plan], lengths: Sequence[int | None]
) -> Iterator[Plan]:
    """Yield a plan for every number of signs and every window length."""
    for reference_every in lengths:
        for sketch_bits in SIGNS:
            yield make_plan(sketch_bits=sketch_bits, reference_every=reference_every)


def fit_to_epochs(length: float, steps_per_epoch: int | None) -> int:
    """Round a length to whole epochs, or to an n-th of an epoch."""
    # Every epoch then starts a window.
    if steps_per_epoch is None:
        return max(1, round(length))
    if length >= steps_per_epoch:
        return round(length / steps_per_epoch) * steps_per_epoch
    return -(-steps_per_epoch // round(steps_per_epoch / max(1.0, length)))
