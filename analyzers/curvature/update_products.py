"""How gradients and the steps that follow them point: what tables and probes tell."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import xarray as xr

from analyzers._engine.anchor_norms import anchor_norms
from analyzers._engine.arrays.probed import cosine
from analyzers._engine.tables import tables
from trajstore.format.arrays import STEP
from trajstore.format.rows import decode_probes
from trajstore.reading.epochs import index_epochs
from trajstore.reading.run import Run

MOMENTUM: Final = 0.9
"""What `run.attrs` means by the optimizer "momentum"."""

ALIKE: Final = 1e-3
"""Relative differences of norms, and of products over norms, that rounding explains."""

ROUNDING: Final = 2.0**-22
"""Of a parameter, relative: what a change of it is off by."""

UPDATE: Final = "update"
"""The measurement of what steps change."""

NAMES: Final = ("before", "before_stderr", "after", "after_stderr")
"""Variables of the result."""

ROWS: Final = 1024
"""Rows of probes that are read at once."""


def update_products(run: Run) -> xr.Dataset:
    r"""Products of the update u_k with the gradients before and after it.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.

    Returns
    -------
    xarray.Dataset
        Loaded. Dimension ``step`` with the coordinates ``epoch`` and ``iteration``;
        float64, units of 1. ``before``, :math:`\langle g_k, u_k \rangle`, and ``after``,
        :math:`\langle g_{k+1}, u_k \rangle`, with ``before_stderr`` and ``after_stderr``:
        0 where they are exact. The attribute ``rule`` says how they were had:

        - ``"plain descent"``: the tables say :math:`u_k = -\eta_k g_k` of every tensor and
          step, so that both follow from |g|^2 and <g, g_previous>.
        - ``"momentum"``: the run says that it was trained by SGD with a momentum
          :math:`\beta` of 0.9 and without weight decay. Then :math:`u_k = -\eta_k (\beta
          m_{k-1} + g_k)` and :math:`m_{k-1} = -u_{k-1} / \eta_{k-1}`, so that the recorded
          lengths tell :math:`\langle g_k, m_{k-1} \rangle` and all else.
        - ``"probes"``: estimated from the fixed probes of gradients and of updates, where
          these are recorded (``updates=True``). The error is about :math:`|g| |u|` over
          the square root of the number of probes, and shared by neighbouring steps.
        - ``"unknown"``: none of these; all values are NaN.
    """
    if bool(is_plain_descent(run).compute()):
        return _of_plain_descent(run)
    if _has_momentum(run):
        return _of_momentum(run)
    if UPDATE in run.measurements:
        return _of_probes(run)
    unknown = np.full(run.n_steps, np.nan)
    return _dataset(run, "unknown", dict.fromkeys(NAMES, unknown))


def is_plain_descent(run: Run) -> xr.DataArray:
    """Whether every step of a run has changed every tensor by -lr times its gradient.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.

    Returns
    -------
    xarray.DataArray
        Lazy, bool, without dimensions. Judged by the lengths of both, which agree to 0.1
        percent or to the rounding of the parameters, and by their products with x - r. False
        if several learning rates, or none, were recorded. Of a run with ``basis=0`` all
        references are decoded, for their norms.
    """
    if "lr" not in run.metrics or "lr_1" in run.metrics:
        return xr.DataArray(data=False).chunk()
    names = ("grad_sq", "update_sq", "grad_dot_displacement")
    more = ("update_dot_displacement", "displacement_sq")
    steps = tables(run, *names, *more).astype(np.float64)
    lr = tables(run, "lr")["lr"]
    expected = lr * steps["grad_sq"] ** 0.5
    slack = ALIKE * expected + ROUNDING * _length(run, steps)
    is_long = abs(steps["update_sq"] ** 0.5 - expected) <= slack
    product = steps["update_dot_displacement"] + lr * steps["grad_dot_displacement"]
    is_along = abs(product) <= slack * steps["displacement_sq"] ** 0.5
    is_known = np.isfinite(slack) & np.isfinite(steps["update_sq"])
    agrees = (is_long & is_along) | ~is_known
    return agrees.all() & is_known.any()


def _length(run: Run, steps: xr.Dataset) -> xr.DataArray:
    """Return |x| by step and tensor; without a basis |r| + |x - r|, hardly more."""
    if run.spec.basis:
        return tables(run, "param_sq")["param_sq"].astype(np.float64) ** 0.5
    return anchor_norms(run) + steps["displacement_sq"] ** 0.5


def _of_plain_descent(run: Run) -> xr.Dataset:
    steps = _totals(run)
    lr, nothing = steps["lr"], np.zeros(run.n_steps)
    return _dataset(
        run,
        "plain descent",
        {
            "before": -lr * steps["grad_sq"],
            "before_stderr": nothing,
            "after": -lr * _next(steps["grad_dot_previous"]),
            "after_stderr": nothing,
        },
    )


def _has_momentum(run: Run) -> bool:
    settings: Mapping[str, Any] = run.attrs.get("training", {})
    return (
        settings.get("optimizer") == "momentum"
        and settings.get("weight_decay") == 0
        and "lr" in run.metrics
    )


def _of_momentum(run: Run) -> xr.Dataset:
    steps = _totals(run)
    lr, nothing = steps["lr"], np.zeros(run.n_steps)
    buffer_sq = steps["update_sq"] / lr**2
    previous_sq = np.append(0.0, buffer_sq[:-1])
    with_buffer = buffer_sq - MOMENTUM**2 * previous_sq - steps["grad_sq"]
    # <g_k, m_(k-1)>
    product = with_buffer / (2 * MOMENTUM)
    return _dataset(
        run,
        "momentum",
        {
            "before": -lr * (steps["grad_sq"] + MOMENTUM * product),
            "before_stderr": nothing,
            "after": -lr * _next(product),
            "after_stderr": nothing,
        },
    )


def _of_probes(run: Run) -> xr.Dataset:
    """Take the cosines of probes; the lengths are known."""
    norms = tables(run, "grad_norm", "update_norm").compute()
    gradient, update = norms["grad_norm"].values, norms["update_norm"].values
    found = {name: np.full(run.n_steps, np.nan) for name in NAMES}
    updates = run.measured(UPDATE)
    # One row for each step, if none was lost.
    of_step = np.full(run.n_steps, -1)
    of_step[updates.stored.step_numbers] = np.arange(updates.n_steps)
    for start in range(0, run.n_steps, ROWS):
        steps = np.arange(start, min(start + ROWS, run.n_steps))
        known = steps[of_step[steps] >= 0]
        if not len(known):
            continue
        of_updates = _vectors(updates, of_step[known])
        for name, later in (("before", 0), ("after", 1)):
            there = known + later < run.n_steps
            other = known[there] + later
            estimate = cosine(_vectors(run, other), of_updates[there])
            scale = gradient[other] * update[known[there]]
            found[name][known[there]] = estimate.value * scale
            stderr = np.zeros_like(scale) if run.spec.exact else estimate.stderr * scale
            found[f"{name}_stderr"][known[there]] = stderr
    return _dataset(run, "probes", found)


def _vectors(run: Run, rows: Any) -> Any:
    """Return what is kept of gradients, float64 of shape (row, probe or param)."""
    around = slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)
    if run.spec.exact:
        whole = slice(0, run.layout.size)
        return run.stored.large_rows("gradient", around, whole)[
            rows - around.start
        ].astype(np.float64)
    names = ("gradient_probes", "displacement_probes", "probe_scales")
    stored = {
        name: run.stored.rows(name, around)[rows - around.start] for name in names
    }
    return decode_probes(stored)[0]


def _totals(run: Run) -> dict[str, Any]:
    """Return what is recorded of all tensors together, float64 of shape (step,)."""
    names = ("grad_sq", "grad_dot_previous", "update_sq")
    summed = tables(run, *names).astype(np.float64).sum("layer", skipna=False)
    steps = summed.assign(lr=tables(run, "lr")["lr"]).compute()
    totals = {name: variable.values for name, variable in steps.items()}
    # There is no gradient before the first.
    totals["grad_dot_previous"][:1] = np.nan
    return {str(name): values for name, values in totals.items()}


def _next(values: Any) -> Any:
    return np.append(values[1:], np.nan)


def _dataset(run: Run, rule: str, values: Mapping[str, Any]) -> xr.Dataset:
    coordinates = {
        STEP: run.stored.step_numbers,
        "epoch": (STEP, run.stored.epochs),
        "iteration": (STEP, run.stored.iterations),
    }
    variables = {name: (STEP, values[name]) for name in NAMES}
    attributes = {"run": run.location, "rule": rule}
    return index_epochs(xr.Dataset(variables, coordinates, attributes))
