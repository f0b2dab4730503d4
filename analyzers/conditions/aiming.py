"""Whether gradients aim at where the path ends, and whether they are long enough."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import xarray as xr

from analyzers.geometry.losses import (
    gradient_name,
    gradients_of,
    products,
    recorded_losses,
)
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike

DELTAS: Final = (1.0, 1.25, 1.5, 1.75, 2.0)
"""Exponents of the PL condition: those of the paper's figures, and 2."""


def aiming(
    run: Run, *, reference: TargetLike = "final", measurement: str | None = None
) -> xr.Dataset:
    r"""Angle between gradient and x - x*, and the constant of the aiming condition.

    The condition is :math:`\langle \nabla f(x_k), x_k - x^* \rangle \ge \theta f(x_k)` with
    a :math:`\theta > 0`; what is measured is

    .. math:: \theta_k = \frac{\langle \nabla f(x_k), x_k - x^* \rangle}{f(x_k)} ,

    as in figures 1 and 2 of [1]_, and the cosine, which is called "Angle" there.

    Parameters
    ----------
    run : trajstore.Run
        With the losses of steps: ``recorder.log(loss=loss)``.
    reference : str, int, Run or mapping, default: "final"
        The point x*, as `path_geometry` takes it.
    measurement : str, optional
        Take gradients and losses of a measurement: ``"full_batch"`` for those of all data,
        which ``traj-train run NAME --full-gradients`` records. Default: those of steps,
        which are of minibatches. The condition is one of f, and its figures are of full
        gradients: what minibatches show is not the condition itself.

    Returns
    -------
    xarray.Dataset
        Dimension ``step`` with the coordinates ``epoch`` and ``iteration``; float64.
        ``cosine``, units of 1; ``angle``, degrees; ``theta``, units of 1; each with its
        standard error in a variable ending in ``_stderr``, lazy; and ``loss``. NaN as in
        `path_geometry`, and theta also where the loss is 0. ``attrs["gradient"]`` says
        whose gradients they are.

    Raises
    ------
    KeyError
        If there is no such measurement, snapshot or epoch.
    ValueError
        If losses are not recorded, and as `path_geometry`.
    TypeError
        As `path_geometry`.

    Notes
    -----
    theta is unbiased. Standard errors are to first order; that of the angle is large where
    gradient and x - x* are parallel.

    References
    ----------
    .. [1] R. Islamov, N. Ajroldi, A. Orvieto, A. Lucchi, "Loss Landscape Characterization
       of Neural Networks without Over-Parametrization", NeurIPS 2024.
    """
    measured = gradients_of(run, measurement)
    loss = recorded_losses(measured)
    product, geometry = products(measured, reference)
    cosine, stderr = geometry["gamma"], geometry["gamma_stderr"]
    sine = ((1 - cosine**2).clip(min=0)) ** 0.5
    in_degrees = 180 / np.pi
    divisor = loss.copy(data=np.where(loss != 0, loss, np.nan)).variable
    names: dict[str, tuple[str, str, Any, Any]] = {
        "cosine": ("cosine of gradient and x - x*", "1", cosine, stderr),
        "angle": (
            "angle between gradient and x - x*",
            "degree",
            np.arccos(cosine.clip(-1, 1)) * in_degrees,
            stderr / sine.where(sine > 0) * in_degrees,
        ),
        "theta": (
            "product of gradient and x - x* over the loss",
            "1",
            product["product"] / divisor,
            product["product_stderr"] / abs(divisor),
        ),
    }
    variables = {"loss": loss.assign_attrs(long_name="loss", units="1")}
    for name, (long_name, units, value, error) in names.items():
        variables[name] = value.assign_attrs(long_name=long_name, units=units)
        variables[f"{name}_stderr"] = error.assign_attrs(
            long_name=f"standard error of {name}", units=units
        )
    attributes = {
        name: geometry.attrs[name] for name in ("run", "reference", "reference_note")
    }
    return xr.Dataset(variables).assign_attrs(
        attributes | {"gradient": gradient_name(measured)}
    )


def polyak_lojasiewicz(
    run: Run,
    *,
    reference_loss: float,
    delta: Sequence[float] = DELTAS,
    measurement: str | None = None,
) -> xr.Dataset:
    r"""Constants of the Polyak-Lojasiewicz condition that steps allow.

    The condition of order :math:`\delta \in [1, 2]` is [1]_
    :math:`|\nabla f|^\delta \ge (2 \mu)^{\delta/2} (f - f^*)`. It holds at step k for every
    :math:`\mu` up to

    .. math:: \mu_k(\delta) = \frac{|\nabla f(x_k)|^2}{2 (f(x_k) - f^*)^{2/\delta}} ,

    and along the path up to the smallest of these.

    Parameters
    ----------
    run : trajstore.Run
        With the losses of steps: ``recorder.log(loss=loss)``.
    reference_loss : float
        f*, such as that of the last iterate: ``full_reference_loss`` of what
        ``traj-train replay`` computes.
    delta : sequence of float, default: (1, 1.25, 1.5, 1.75, 2)
        Orders; 2 is the usual condition.
    measurement : str, optional
        Take gradients and losses of a measurement: ``"full_batch"`` for those of all data,
        which ``traj-train run NAME --full-gradients`` records. Default: those of steps,
        which are of minibatches. The condition is one of f: what minibatches show is not
        the condition itself, for their gradients do not vanish where that of f does, and
        their losses may be below f*.

    Returns
    -------
    xarray.Dataset
        Loaded, exact. Dimensions ``step``, with the coordinates ``epoch`` and
        ``iteration``, and ``delta``. ``mu`` (step, delta); NaN where the loss is not above
        f*, where the condition holds for every mu, and where something is not known.
        ``smallest`` (delta), the least of these, and ``smallest_step``, -1 where there is
        none; ``n_missing``, how many steps have no mu. ``attrs["gradient"]`` says whose
        gradients they are.

    Raises
    ------
    KeyError
        If there is no such measurement.
    ValueError
        If losses are not recorded, or an order is not between 1 and 2.

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
    excess = loss.values - reference_loss
    # Where there is no excess there is nothing to bound.
    excess = np.where(excess > 0, excess, np.nan)[:, None]
    with np.errstate(divide="ignore", over="ignore"):
        mu = grad_norm[:, None] ** 2 / (2 * excess ** (2 / orders))
    mu = np.where(np.isfinite(mu), mu, np.nan)
    is_known = np.isfinite(mu).any(0)
    least = np.where(np.isfinite(mu), mu, np.inf).argmin(0) if len(mu) else None
    smallest, step = np.full(len(orders), np.nan), np.full(len(orders), -1)
    if least is not None:
        smallest[is_known] = mu[least, np.arange(len(orders))][is_known]
        step[is_known] = measured.stored.step_numbers[least][is_known]
    attributes = {"long_name": "largest mu of the step", "units": "1"}
    dataset = loss.to_dataset(name="loss").assign_coords(delta=orders)
    return dataset.assign(
        mu=(("step", "delta"), mu, attributes),
        smallest=("delta", smallest),
        smallest_step=("delta", step),
        n_missing=int(np.isnan(mu).any(1).sum()),
    ).assign_attrs(
        run=run.location,
        reference_loss=reference_loss,
        gradient=gradient_name(measured),
    )
