r"""Singular modes of deep linear networks under gradient flow.

Let a network of L layers :math:`y = W_L \cdots W_1 x` learn from inputs with the covariance
:math:`\Sigma_{xx} = I` and targets whose correlation with the inputs is
:math:`\Sigma_{yx} = U \mathrm{diag}(\lambda) V^T`. If the network starts from
small balanced weights that are diagonal in the bases U and V, it learns every singular mode
independently. The strength of a mode, :math:`a_\mu = u_\mu^T W_L \cdots W_1 v_\mu`, follows

.. math:: \frac{da}{dt} = L a^{2 - 2/L} (\lambda - a)

if the loss is half the squared error, summed over outputs and averaged over examples.

A. M. Saxe, J. L. McClelland, S. Ganguli, "Exact solutions to the nonlinear dynamics of
learning in deep linear neural networks", 2014, arXiv 1312.6120; for depth L also S. Arora,
N. Cohen, E. Hazan, "On the Optimization of Deep Networks: Implicit Acceleration by
Overparameterization", 2018, arXiv 1802.06509.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.integrate import quad, solve_ivp

from analyzers.deep_linear.conventions import LossConvention

FloatArray = npt.NDArray[np.floating[Any]]

INTEGRATION_RTOL: Final = 1e-11
"""Relative tolerance of the numerical integration for three or more layers."""


def time_of_steps(
    lr: npt.ArrayLike,
    steps: npt.ArrayLike,
    *,
    loss: LossConvention = "half-sum",
    n_outputs: int | None = None,
) -> FloatArray:
    r"""Time of the gradient flow that corresponds to a number of gradient descent steps.

    The closed forms hold for the loss
    :math:`\frac{1}{n} \sum_i \frac{1}{2} |\hat y_i - y_i|^2` over n examples. A loss that
    is c times this loss has c times the gradient, and k steps with the learning rate
    :math:`\eta` take the time :math:`t = c \eta k`:

    ===========  ==============================================  ===================
    ``loss``     squared errors are                              c
    ===========  ==============================================  ===================
    half-sum     summed over outputs, and halved                 1
    sum          summed over outputs                             2
    mean         averaged over outputs, as ``torch.nn.MSELoss``  2 / ``n_outputs``
    ===========  ==============================================  ===================

    Parameters
    ----------
    lr : array_like
        Learning rate :math:`\eta`.
    steps : array_like
        Number of steps k, of a shape that broadcasts with `lr`.
    loss : {"half-sum", "sum", "mean"}, default: "half-sum"
        Convention of the training loss, which is always a mean over examples.
    n_outputs : int, optional
        Number of outputs of the network; required for ``"mean"``, unused otherwise.

    Returns
    -------
    numpy.ndarray
        Time t, float64, of the shape to which `lr` and `steps` broadcast.

    Raises
    ------
    ValueError
        If `loss` is unknown, or `n_outputs` is missing for ``"mean"``.

    Examples
    --------
    >>> float(time_of_steps(0.01, 300)), float(time_of_steps(0.01, 300, loss="sum"))
    (3.0, 6.0)
    >>> float(time_of_steps(0.01, 300, loss="mean", n_outputs=4))
    1.5
    """
    if loss == "mean":
        if n_outputs is None:
            raise ValueError(
                "The loss 'mean' averages over outputs, so time depends on the number of "
                "outputs; got `n_outputs` = None. Pass the number of outputs."
            )
        factor = 2 / n_outputs
    else:
        factors = {"half-sum": 1.0, "sum": 2.0}
        if loss not in factors:
            raise ValueError(
                f"`loss` must be one of {[*factors, 'mean']}; got {loss!r}."
            )
        factor = factors[loss]
    return np.asarray(factor * np.asarray(lr, float) * np.asarray(steps, float))


def mode_strength(
    time: npt.ArrayLike, *, strength: float, initial: float, depth: int = 2
) -> FloatArray:
    r"""Strength of a singular mode under gradient flow, as a function of time.

    For two layers, the strength is

    .. math:: a(t) = \frac{\lambda}{1 + (\lambda / a(0) - 1) e^{-2 \lambda t}},

    for one layer, :math:`a(t) = \lambda + (a(0) - \lambda) e^{-t}`, and for L layers, the
    solution of :math:`da/dt = L a^{2 - 2/L} (\lambda - a)`.

    Parameters
    ----------
    time : array_like
        Time t, not negative, of any shape; `time_of_steps` computes it.
    strength : float
        Limit :math:`\lambda` of the mode, not negative.
    initial : float
        Initial strength a(0), positive.
    depth : int, default: 2
        Number of layers L, at least 1.

    Returns
    -------
    numpy.ndarray
        Strength a(t), float64, of the shape of `time`. NaN if `initial` is not positive and
        `depth` is at least 2: a mode of the opposite sign would have to pass through 0,
        where it stops.

    Raises
    ------
    ValueError
        If `depth` is below 1, or `strength` or a time is negative.

    Notes
    -----
    The result is exact for one or two layers. For more layers, a Runge-Kutta method of order
    8 integrates the equation for the L-th root of a, with a relative error of about 1e-10.

    Examples
    --------
    >>> mode_strength([0.0, 1.0, 9.0], strength=1.0, initial=0.1).round(4)
    array([0.1   , 0.4509, 1.    ])
    """
    t = np.asarray(time, float)
    if depth < 1 or strength < 0 or (t < 0).any():
        raise ValueError(
            "Expected a `depth` of at least 1, and a `strength` and times that are not "
            f"negative; got {depth}, {strength} and times from {t.min()}."
        )
    if depth == 1:
        return np.asarray(strength + (initial - strength) * np.exp(-t))
    if not initial > 0:
        return np.full(t.shape, np.nan)
    if depth == 2:
        # This form also covers a strength of 0, where the mode decays.
        decay = np.exp(-2 * strength * t)
        growth = -np.expm1(-2 * strength * t) / strength if strength else 2 * t
        return np.asarray(initial / (decay + initial * growth))
    return _integrate(t, strength=strength, initial=initial, depth=depth)


def _integrate(
    time: FloatArray, *, strength: float, initial: float, depth: int
) -> FloatArray:
    """Integrate ds/dt = s^(L-1) (strength - s^L) for L = `depth`, and return s^L by time."""
    times, inverse = np.unique(time, return_inverse=True)
    if not len(times):
        return np.zeros(time.shape)

    def slope(_t: float, s: FloatArray) -> FloatArray:
        return np.asarray(s ** (depth - 1) * (strength - s**depth))

    s = initial ** (1 / depth)
    solved = solve_ivp(
        slope,
        (0.0, max(float(times[-1]), np.finfo(float).tiny)),
        [s],
        method="DOP853",
        t_eval=times,
        rtol=INTEGRATION_RTOL,
        atol=INTEGRATION_RTOL * s,
    )
    values: FloatArray = solved.y[0] ** depth
    return values[inverse].reshape(time.shape)


def half_time(*, strength: float, initial: float, depth: int = 2) -> float:
    r"""Time that a mode takes under gradient flow to reach half of its limit.

    For two layers, the time is :math:`\ln(\lambda / a(0) - 1) / (2 \lambda)`; for L layers,
    it is the integral of :math:`dt = da / (L a^{2 - 2/L} (\lambda - a))` from :math:`a(0)`
    to :math:`\lambda / 2`.

    Parameters
    ----------
    strength : float
        Limit :math:`\lambda` of the mode, positive.
    initial : float
        Initial strength a(0), positive.
    depth : int, default: 2
        Number of layers L, at least 1.

    Returns
    -------
    float
        Time t, 0 if the mode starts with at least half of its limit.

    Raises
    ------
    ValueError
        If a value is out of range.

    Examples
    --------
    >>> round(half_time(strength=1.0, initial=0.01), 4)
    2.2976
    """
    if depth < 1 or not strength > 0 or not initial > 0:
        raise ValueError(
            "Expected a `depth` of at least 1, and a positive `strength` and `initial`; "
            f"got {depth}, {strength} and {initial}."
        )
    if initial >= strength / 2:
        return 0.0
    if depth == 2:
        return float(np.log(strength / initial - 1) / (2 * strength))
    limits = (initial ** (1 / depth), (strength / 2) ** (1 / depth))
    # As a function of s, with a = s^L, the integrand is large only near the lower limit.
    time, _ = quad(
        lambda s: s ** (1 - depth) / (strength - s**depth),
        *limits,
        epsrel=INTEGRATION_RTOL,
    )
    return float(time)


def imbalance(weights: Sequence[FloatArray]) -> list[FloatArray]:
    """Return W_(l+1)^T W_(l+1) - W_l W_l^T for successive layers, each (..., n, n)."""
    # Gradient flow conserves these matrices, which are zero for balanced weights. `weights`
    # (..., n_out, n_in) starts with the layer next to the inputs.
    return [
        after.swapaxes(-1, -2) @ after - before @ before.swapaxes(-1, -2)
        for before, after in pairwise(weights)
    ]


def effective_rank(singular_values: FloatArray) -> FloatArray:
    """Return exp(entropy) of the normalised singular values (..., value), shape (...)."""
    # Defined by O. Roy and M. Vetterli, "The effective rank: A measure of effective
    # dimensionality", EUSIPCO 2007. Ranges from 1 to the number of values; NaN if all are 0.
    total = singular_values.sum(-1, keepdims=True)
    share = np.divide(
        singular_values,
        total,
        out=np.full_like(singular_values, np.nan),
        where=total > 0,
    )
    # A share of 0 contributes nothing; NaN stays NaN.
    logarithm = np.log(np.where(share == 0, 1, share))
    return np.asarray(np.exp(-(share * logarithm).sum(-1)))
