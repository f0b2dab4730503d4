"""Products of updates and gradients, from recorded tables or from probes."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import xarray as xr

from analyzers._engine.arrays.probed import cosine
from analyzers._engine.labels import step_coordinates
from analyzers._engine.tables import tables
from analyzers.curvature.anchor_norms import anchor_norms
from trajstore.format.arrays import STEP
from trajstore.format.attrs import MOMENTUM, UPDATE, training_settings
from trajstore.format.rows import decode_probes
from trajstore.reading.accepts_path import accepts_path
from trajstore.reading.epochs import index_epochs
from trajstore.reading.run import Run

DESCENT_RTOL: Final = 1e-3
"""Relative tolerance of norms and cosines when testing whether u = -lr g."""

UPDATE_RTOL: Final = 2.0**-22
"""Rounding error of an update, relative to the parameters."""

DESCENT_TABLES: Final = (
    "grad_sq",
    "update_sq",
    "grad_dot_displacement",
    "update_dot_displacement",
    "displacement_sq",
)

VARIABLES: Final = ("before", "before_stderr", "after", "after_stderr")

ROWS_PER_READ: Final = 1024
"""Number of rows of probes to read at a time."""


@accepts_path
def update_products(run: Run) -> xr.Dataset:
    r"""Inner products of every update with the gradients before and after it.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.

    Returns
    -------
    xarray.Dataset
        Loaded. Dimension ``step`` with the coordinates ``epoch`` and ``iteration``;
        float64, without units. ``before`` is :math:`\langle g_k, u_k \rangle` and ``after``
        is :math:`\langle g_{k+1}, u_k \rangle`. Their standard errors ``before_stderr`` and
        ``after_stderr`` are 0 where the products are exact. ``attrs["rule"]`` names the
        method:

        - ``"plain descent"``: the tables show :math:`u_k = -\eta_k g_k`, with the learning
          rate :math:`\eta_k`, for every layer and step, so :math:`|g_k|^2` and
          :math:`\langle g_{k+1}, g_k \rangle` determine both products.
        - ``"momentum"``: according to its settings, the run was trained by SGD with momentum
          :math:`\beta` = 0.9 and without weight decay. The updates are :math:`u_k = -\eta_k
          (\beta m_{k-1} + g_k)` with the buffer :math:`m_{k-1} = -u_{k-1} / \eta_{k-1}`, so
          the recorded norms determine :math:`\langle g_k, m_{k-1} \rangle` and thereby
          both products.
        - ``"probes"``: the run recorded updates (``updates=True``), and the products are
          estimated from the fixed probes of gradients and updates. The error is about
          :math:`|g| |u|` divided by the square root of the number of probes; errors of
          neighbouring steps are correlated.
        - ``"unknown"``: no other rule applies, and all values are NaN.
    """
    if bool(is_plain_descent(run).compute()):
        return _from_plain_descent(run)
    if _has_momentum(run):
        return _from_momentum(run)
    if UPDATE in run.measurements:
        return _from_probes(run)
    unknown = np.full(run.n_steps, np.nan)
    return _dataset(run, "unknown", dict.fromkeys(VARIABLES, unknown))


def is_plain_descent(run: Run) -> xr.DataArray:
    """Whether every update of every layer is -lr times its gradient, lazy, bool ()."""
    # Compares update and gradient by their norms, to 0.1 percent plus the rounding of the
    # parameters, and by their products with the displacement x - r. Returns False unless
    # exactly one learning rate was recorded.
    if "lr" not in run.metrics or "lr_1" in run.metrics:
        return xr.DataArray(data=False).chunk()
    steps = tables(run, *DESCENT_TABLES).astype(np.float64)
    lr = tables(run, "lr")["lr"]
    expected = lr * steps["grad_sq"] ** 0.5
    slack = DESCENT_RTOL * expected + UPDATE_RTOL * _length(run, steps)
    has_length = abs(steps["update_sq"] ** 0.5 - expected) <= slack
    product = steps["update_dot_displacement"] + lr * steps["grad_dot_displacement"]
    has_direction = abs(product) <= slack * steps["displacement_sq"] ** 0.5
    is_known = np.isfinite(slack) & np.isfinite(steps["update_sq"])
    agrees = (has_length & has_direction) | ~is_known
    return agrees.all() & is_known.any()


def _length(run: Run, steps: xr.Dataset) -> xr.DataArray:
    """Return |x|, or its bound |r| + |x - r| if there is no basis, float64 (step, layer)."""
    # Without a basis, this decodes every anchor to compute its norm.
    if run.spec.basis:
        return tables(run, "param_sq")["param_sq"].astype(np.float64) ** 0.5
    return anchor_norms(run) + steps["displacement_sq"] ** 0.5


def _from_plain_descent(run: Run) -> xr.Dataset:
    steps = _totals(run)
    lr, exact = steps["lr"], np.zeros(run.n_steps)
    return _dataset(
        run,
        "plain descent",
        {
            "before": -lr * steps["grad_sq"],
            "before_stderr": exact,
            "after": -lr * _next(steps["grad_dot_previous"]),
            "after_stderr": exact,
        },
    )


def _has_momentum(run: Run) -> bool:
    settings = training_settings(run.attrs)
    return (
        settings.get("optimizer") == "momentum"
        and settings.get("weight_decay") == 0
        and "lr" in run.metrics
    )


def _from_momentum(run: Run) -> xr.Dataset:
    steps = _totals(run)
    lr, exact = steps["lr"], np.zeros(run.n_steps)
    buffer_sq = steps["update_sq"] / lr**2
    previous_sq = np.append(0.0, buffer_sq[:-1])
    mixed_term = buffer_sq - MOMENTUM**2 * previous_sq - steps["grad_sq"]
    # The product <g_k, m_(k-1)> of the gradient and the buffer.
    product = mixed_term / (2 * MOMENTUM)
    return _dataset(
        run,
        "momentum",
        {
            "before": -lr * (steps["grad_sq"] + MOMENTUM * product),
            "before_stderr": exact,
            "after": -lr * _next(product),
            "after_stderr": exact,
        },
    )


def _from_probes(run: Run) -> xr.Dataset:
    """Estimate cosines from probes, and multiply them by the recorded norms."""
    norms = tables(run, "grad_norm", "update_norm").compute()
    gradient, update = norms["grad_norm"].values, norms["update_norm"].values
    found = {name: np.full(run.n_steps, np.nan) for name in VARIABLES}
    updates = run.measured(UPDATE)
    # Every step has an update, unless its row was lost.
    row_of_step = np.full(run.n_steps, -1)
    row_of_step[updates.stored.step_numbers] = np.arange(updates.n_steps)
    for start in range(0, run.n_steps, ROWS_PER_READ):
        steps = np.arange(start, min(start + ROWS_PER_READ, run.n_steps))
        known = steps[row_of_step[steps] >= 0]
        if not len(known):
            continue
        moved = _vectors(updates, row_of_step[known])
        for name, later in (("before", 0), ("after", 1)):
            has_gradient = known + later < run.n_steps
            step = known[has_gradient]
            estimate = cosine(_vectors(run, step + later), moved[has_gradient])
            scale = gradient[step + later] * update[step]
            found[name][step] = estimate.value * scale
            stderr = np.zeros_like(scale) if run.spec.exact else estimate.stderr * scale
            found[f"{name}_stderr"][step] = stderr
    return _dataset(run, "probes", found)


def _vectors(run: Run, rows: Any) -> Any:
    """Return gradients of an exact run, or probes of a sketched run, as float64 rows."""
    span = slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)
    chosen = rows - span.start
    if run.spec.exact:
        whole = slice(0, run.layout.size)
        gradients = run.stored.large_rows("gradient", span, whole)
        return gradients[chosen].astype(np.float64)
    names = ("gradient_probes", "displacement_probes", "probe_scales")
    stored = {name: run.stored.rows(name, span)[chosen] for name in names}
    return decode_probes(stored)[0]


def _totals(run: Run) -> dict[str, Any]:
    """Return the recorded products summed over all layers, float64 (step,)."""
    names = ("grad_sq", "grad_dot_previous", "update_sq")
    summed = tables(run, *names).astype(np.float64).sum("layer", skipna=False)
    steps = summed.assign(lr=tables(run, "lr")["lr"]).compute()
    totals = {name: variable.values for name, variable in steps.items()}
    # The first step has no previous gradient.
    totals["grad_dot_previous"][:1] = np.nan
    return {str(name): values for name, values in totals.items()}


def _next(values: Any) -> Any:
    return np.append(values[1:], np.nan)


def _dataset(run: Run, rule: str, values: Mapping[str, Any]) -> xr.Dataset:
    variables = {name: (STEP, values[name]) for name in VARIABLES}
    attributes = {"run": run.location, "rule": rule}
    return index_epochs(xr.Dataset(variables, step_coordinates(run), attributes))
