"""Aiming condition: the angle between the gradient and x - x*, and the constant theta."""

from typing import Final

import numpy as np
import xarray as xr

from analyzers._engine.labels import describe
from analyzers.conditions.rounding import (
    gradient_error,
    is_rounding,
    loss_epsilon,
    loss_error,
    rule,
)
from analyzers.geometry.losses import (
    gradient_name,
    gradients_of,
    products,
    recorded_losses,
)
from trajstore.reading.accepts_path import accepts_path
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike

LONG_NAMES: Final = {
    "loss": "loss",
    "cosine": "cosine of gradient and x - x*",
    "angle": "angle between gradient and x - x*",
    "theta": "product of gradient and x - x* over the loss",
}


@accepts_path
def aiming(
    run: Run,
    *,
    reference: TargetLike = "final",
    measurement: str | None = None,
    full_batch: bool = False,
) -> xr.Dataset:
    r"""Angle between the gradient and x - x*, and the constant of the aiming condition.

    The condition is :math:`\langle \nabla f(x_k), x_k - x^* \rangle \ge \theta f(x_k)` with
    a constant :math:`\theta > 0`. Step k satisfies it for every :math:`\theta` up to

    .. math:: \theta_k = \frac{\langle \nabla f(x_k), x_k - x^* \rangle}{f(x_k)} .

    Figures 1 and 2 of [1]_ show this constant and the cosine of the angle, which [1]_ calls
    "Angle".

    Parameters
    ----------
    run : trajstore.Run
        A run with the loss of every step: ``recorder.log(loss=loss)``.
    reference : str, int, Run or mapping, default: "final"
        The target x*, as `path_geometry` takes it.
    measurement : str, optional
        Name of the measurement whose gradients and losses are used, such as
        ``"full_batch"``: ``traj-train run NAME --full-gradients`` records gradients and
        losses of all data under this name. Default: the gradients and losses of the steps,
        which come from minibatches, unless the run was recorded with
        ``Recorder(attrs={"full_batch": True})``. The condition is about f, and figures in [1]_ show
        full gradients; minibatches do not test the condition itself.
    full_batch : bool, default: False
        Say that every step of the run uses all data, if the recording does not say so.

    Returns
    -------
    xarray.Dataset
        Dimension ``step`` with the coordinates ``epoch`` and ``iteration``; float64.
        ``cosine``, without units; ``angle``, in degrees; and ``theta``, without units, are
        lazy, and so are their standard errors, whose names end in ``_stderr``. ``loss`` is
        the loss of the step or measurement. Values are NaN as in `path_geometry`; theta is
        also NaN where the loss is 0, and where it is rounding (Notes). ``attrs["rounding"]`` gives the
        rule. ``attrs["gradient"]`` says whether the gradients come
        from minibatches, full batches or a measurement.

    Raises
    ------
    KeyError
        If the measurement, snapshot or epoch does not exist.
    ValueError
        If losses are not recorded, or where `path_geometry` raises it.
    TypeError
        Where `path_geometry` raises it.

    Notes
    -----
    Where the product of gradient and x - x* is below 1000 machine epsilons of the loss, and the
    gradient below 1000 epsilons of the largest one, as at the end of a run that converges to a loss
    above 0, theta would be what rounding leaves, and is NaN. The epsilon is that of float32, if the parameters or all losses are numbers of float32, else of
    float64.

    theta is unbiased. Standard errors are first-order approximations. The error of the
    angle is large where the gradient and x - x* are nearly parallel.

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
    epsilon = loss_epsilon(measured, loss.values)
    error = loss.copy(data=loss_error(epsilon, loss.values)).variable
    # The product is small in any run without a signal; it is rounding if the gradient is.
    norm = measured.steps["grad_norm"].compute()
    small = norm.copy(data=norm < gradient_error(epsilon, norm.values)).variable
    is_kept = ~(is_rounding(error, product["product"]) & small)
    result = xr.Dataset(
        {
            "loss": loss,
            "cosine": cosine,
            "cosine_stderr": stderr,
            "angle": np.arccos(cosine.clip(-1, 1)) * in_degrees,
            "angle_stderr": stderr / sine.where(sine > 0) * in_degrees,
            "theta": (product["product"] / divisor).where(is_kept),
            "theta_stderr": (product["product_stderr"] / abs(divisor)).where(is_kept),
        }
    )
    attributes = {
        name: geometry.attrs[name] for name in ("run", "reference", "reference_note")
    }
    return describe(result, LONG_NAMES, units={"angle": "degree"}).assign_attrs(
        attributes
        | {
            "gradient": gradient_name(measured, full_batch=full_batch),
            "rounding": rule(epsilon),
        }
    )
