"""Polyak-Lojasiewicz condition: the constants mu that the steps of a run allow."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers.conditions.arrays import largest_mu
from analyzers.conditions.rounding import (
    LOSS_ROUNDINGS,
    is_rounding,
    loss_epsilon,
    loss_error,
    rule,
)
from analyzers.geometry.losses import gradient_name, gradients_of, recorded_losses
from trajstore.reading.accepts_path import accepts_path
from trajstore.reading.run import Run

FloatArray = npt.NDArray[np.floating[Any]]

DELTAS: Final = (1.0, 1.25, 1.5, 1.75, 2.0)
"""Orders of the condition: the orders that figures of Islamov et al. show, and 2."""

EXACT: Final = (
    "exact up to rounding if f* is the infimum of f; a lower bound if f* is below it, as 0 may be; "
    "too large if f* is above it, as the loss of an iterate is, most in steps whose loss is near f*"
)
"""What mu is where no loss tells that f* is too large."""

TOO_LARGE: Final = (
    "too large: f* is above the infimum of f, because losses of the run are below it"
)
"""What mu is where losses of all data are below f*."""


@accepts_path
def polyak_lojasiewicz(
    run: Run,
    *,
    reference_loss: float,
    delta: Sequence[float] = DELTAS,
    measurement: str | None = None,
    full_batch: bool = False,
) -> xr.Dataset:
    r"""Constants of the Polyak-Lojasiewicz condition that the steps of a run allow.

    The condition of order :math:`\delta \in [1, 2]` [1]_ is
    :math:`|\nabla f|^\delta \ge (2 \mu)^{\delta/2} (f - f^*)`. Step k satisfies it for
    every :math:`\mu` up to

    .. math:: \mu_k(\delta) = \frac{|\nabla f(x_k)|^2}{2 (f(x_k) - f^*)^{2/\delta}} ,

    and the whole path for every :math:`\mu` up to the smallest :math:`\mu_k`. Both are exact for
    the given f*, up to rounding, and say something of f only if f* is its infimum, or a lower bound. **The loss of
    an iterate is above the infimum, so mu is then too large**: by the factor
    :math:`((f(x_k) - \inf f) / (f(x_k) - f^*))^{2/\delta}`, which is largest in the last steps,
    whose losses are near f*, and there has no limit.

    Parameters
    ----------
    run : trajstore.Run
        A run with the loss of every step: ``recorder.log(loss=loss)``.
    reference_loss : float
        f*, the infimum of f or a lower bound, such as 0. With a lower bound, mu is a lower
        bound; with a loss of the run, such as that of the last iterate, it is too large.
    delta : sequence of float, default: (1, 1.25, 1.5, 1.75, 2)
        Orders of the condition; order 2 is the usual condition.
    measurement : str, optional
        Name of the measurement whose gradients and losses are used, such as
        ``"full_batch"``: ``traj-train run NAME --full-gradients`` records gradients and
        losses of all data under this name. Default: the gradients and losses of the steps,
        which come from minibatches, unless the run was recorded with
        ``Recorder(attrs={"full_batch": True})``. The condition is about f, and minibatches do not test
        it: their gradients do not vanish where the gradient of f vanishes, and their
        losses may be below f*.
    full_batch : bool, default: False
        Say that every step of the run uses all data, if the recording does not say so.

    Returns
    -------
    xarray.Dataset
        Loaded. Dimensions ``step``, with the coordinates ``epoch`` and
        ``iteration``, and ``delta``. ``loss`` (step) is the loss. ``mu`` (step, delta) is
        :math:`\mu_k(\delta)`; it is NaN where the loss is not above f*, so that the
        condition holds for every mu, where the loss or the gradient norm is unknown, and where
        the loss minus f*, or the gradient, is rounding (Notes).
        ``smallest`` (delta) is the smallest mu, and ``smallest_step`` (delta) the step that
        attains it: NaN and -1 if no mu is known. ``n_missing`` is the number of steps
        without a mu, and ``n_rounded`` the number of those whose loss minus f*, or whose gradient, is
        rounding; ``attrs["rounding"]`` gives the rule. ``attrs["gradient"]`` says whether the gradients come from minibatches,
        full batches or a measurement, and ``attrs["mu_is"]`` what mu says of the condition:
        where losses of all data are below f*, f* is not the infimum.

    Raises
    ------
    KeyError
        If the measurement does not exist.
    ValueError
        If losses are not recorded, or if an order is not between 1 and 2.

    Notes
    -----
    The error that rounding leaves in a loss is taken to be 10 machine epsilons of it: of float32, if
    the parameters or all losses are numbers of float32, else of float64. Steps whose loss minus f*
    is not 100 times as large, and thus known to one per cent, are left out. So are steps whose
    gradient is rounding: mu_k of order 2 is below (10 epsilon)^2 times the largest mu_k of order 2. What
    rounding changes in the other mu_k is at most 1 % for order 2, and 2 % for order 1.

    References
    ----------
    .. [1] R. Islamov, N. Ajroldi, A. Orvieto, A. Lucchi, "Loss Landscape Characterization
       of Neural Networks without Over-Parametrization", NeurIPS 2024, figures 1 and 8.
    """
    orders = np.asarray(delta, np.float64)
    if not ((orders >= 1) & (orders <= 2)).all():
        raise ValueError(f"`delta` must be between 1 and 2, got {list(delta)}.")
    measured = gradients_of(run, measurement)
    loss = recorded_losses(measured)
    grad_norm = measured.steps["grad_norm"].values
    epsilon, excess = loss_epsilon(measured, loss.values), loss.values - reference_loss
    error = loss_error(epsilon, loss.values, reference_loss)
    rounded = is_rounding(error, excess)
    rounded |= _has_rounded_gradient(
        grad_norm, np.where(rounded, np.nan, excess), epsilon
    )
    mu = largest_mu(grad_norm, np.where(rounded, np.nan, excess), orders)
    smallest, step = np.full(len(orders), np.nan), np.full(len(orders), -1)
    known = np.flatnonzero(np.isfinite(mu).any(0))
    if len(known):
        rows = np.nanargmin(mu[:, known], axis=0)
        smallest[known] = mu[rows, known]
        step[known] = measured.stored.step_numbers[rows]
    dataset = loss.to_dataset(name="loss").assign_coords(delta=orders)
    gradient = gradient_name(measured, full_batch=full_batch)
    is_above = gradient != "minibatch" and bool((excess < -error).any())
    labels = {"long_name": "largest mu of the step", "units": "1"}
    return dataset.assign(
        mu=(("step", "delta"), mu, labels),
        smallest=("delta", smallest),
        smallest_step=("delta", step),
        n_missing=int(np.isnan(mu).any(1).sum()),
        n_rounded=int(rounded.sum()),
    ).assign_attrs(
        run=run.location,
        reference_loss=reference_loss,
        gradient=gradient,
        rounding=rule(epsilon),
        mu_is=TOO_LARGE if is_above else EXACT,
    )


def _has_rounded_gradient(
    grad_norm: FloatArray, excess: FloatArray, epsilon: float
) -> npt.NDArray[np.bool_]:
    """Return in which steps nothing is left of the gradient but rounding, (step,)."""
    [mu] = largest_mu(grad_norm, excess, np.array([2.0])).T
    largest = mu[np.isfinite(mu)].max(initial=0.0)
    return np.asarray(mu <= (LOSS_ROUNDINGS * epsilon) ** 2 * largest)
