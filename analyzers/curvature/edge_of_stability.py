"""Edge of stability: sharpness relative to the largest at which steps are stable."""

from typing import Final, Literal, TypeVar

import numpy as np
import xarray as xr

from analyzers._engine.labels import describe, step_coordinates
from trajstore.format.arrays import STEP
from trajstore.format.attrs import MOMENTUM, training_settings
from trajstore.reading.epochs import index_epochs
from trajstore.reading.run import Run

Rule = Literal["sgd", "nesterov", "adam"]

Rate = TypeVar("Rate", float, xr.DataArray)

RULES: Final[dict[str, tuple[Rule, float]]] = {
    "sgd": ("sgd", 0.0),
    "momentum": ("sgd", MOMENTUM),
    "adam": ("adam", 0.9),
}
"""Rule and momentum by the optimizer's name in the training settings of a run."""

THRESHOLD_RTOL: Final = 0.1
"""Distance from the threshold, relative to it, that counts as near: our own criterion."""

SOURCE: Final = (
    "J. Cohen, S. Kaur, Y. Li, J. Z. Kolter, A. Talwalkar, 'Gradient Descent on Neural "
    "Networks Typically Occurs at the Edge of Stability', ICLR 2021, arXiv 2103.00065; for "
    "Adam J. Cohen et al., 'Adaptive Gradient Methods at the Edge of Stability', 2022, "
    "arXiv 2207.14484"
)

LONG_NAMES: Final = {
    "sharpness": "largest eigenvalue of the Hessian",
    "threshold": "largest sharpness at which steps are stable",
    "ratio": "sharpness over the threshold",
}

SUMMARY: Final = ("reached", "ratio_median", "ratio_min", "ratio_max", "share_near")
"""Variables of the result without a dimension."""


def stability_threshold(
    lr: Rate, *, momentum: float = 0.0, optimizer: Rule = "sgd"
) -> Rate:
    r"""Largest Hessian eigenvalue at which an optimizer is stable on a quadratic.

    With :math:`\eta` the learning rate and :math:`\beta` the momentum,

    - gradient descent: :math:`2 / \eta`;
    - with heavy-ball (Polyak) momentum, :math:`m \leftarrow \beta m + g`,
      :math:`x \leftarrow x - \eta m`: :math:`2 (1 + \beta) / \eta`;
    - with Nesterov momentum, :math:`x \leftarrow x - \eta (g + \beta m)`:
      :math:`(2 + 2 \beta) / ((1 + 2 \beta) \eta)`;
    - Adam, for the *preconditioned* Hessian :math:`P^{-1} H` with P taken as constant:
      :math:`(2 + 2 \beta_1) / ((1 - \beta_1) \eta)`, which is :math:`38 / \eta` at
      :math:`\beta_1 = 0.9`. This is the threshold of heavy-ball momentum with the learning
      rate :math:`(1 - \beta_1) \eta`, since Adam averages gradients instead of summing.

    Parameters
    ----------
    lr : float or xarray.DataArray
        Learning rate, or one for every step, such as ``run.steps.lr``.
    momentum : float, default: 0.0
        From 0 to below 1; for Adam the first beta.
    optimizer : {"sgd", "nesterov", "adam"}, default: "sgd"
        ``"sgd"``: plain, or with heavy-ball momentum, as ``torch.optim.SGD``.

    Returns
    -------
    float or xarray.DataArray
        Same type and shape as `lr`; its units are the inverse of the units of `lr`.

    Raises
    ------
    ValueError
        If `momentum` or `optimizer` is out of range.

    References
    ----------
    .. [1] J. Cohen, S. Kaur, Y. Li, J. Z. Kolter, A. Talwalkar, "Gradient Descent on Neural
       Networks Typically Occurs at the Edge of Stability", ICLR 2021, arXiv 2103.00065.
    .. [2] J. Cohen et al., "Adaptive Gradient Methods at the Edge of Stability", 2022.
       arXiv 2207.14484.

    Examples
    --------
    >>> from analyzers import stability_threshold
    >>> stability_threshold(0.5)
    4.0
    >>> round(stability_threshold(1.0, momentum=0.9, optimizer="adam"), 9)
    38.0
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"`momentum` must be from 0 to below 1, got {momentum}.")
    largest = 2 * (1 + momentum)
    if optimizer == "sgd":
        return largest / lr
    if optimizer == "nesterov":
        return largest / (1 + 2 * momentum) / lr
    if optimizer == "adam":
        return largest / (1 - momentum) / lr
    raise ValueError(
        f"`optimizer` must be 'sgd', 'nesterov' or 'adam', got {optimizer!r}."
    )


def edge_of_stability(
    run: Run, *, optimizer: Rule | None = None, momentum: float | None = None
) -> xr.Dataset:
    """Ratio of the largest Hessian eigenvalue to the stability threshold of the optimizer.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`, with sharpness logged at some steps:
        ``traj-train run NAME --sharpness-every 10`` logs it, or in your own loop
        ``recorder.log(sharpness=...)``; for Adam ``preconditioned_sharpness``.
    optimizer : {"sgd", "nesterov", "adam"}, optional
        See `stability_threshold`. Default: from the training settings in ``run.attrs``.
    momentum : float, optional
        See `stability_threshold`. Default: from the training settings, or else 0, and 0.9
        for Adam.

    Returns
    -------
    xarray.Dataset
        Loaded. Dimension ``step``, the steps at which sharpness was logged, with the
        coordinates ``epoch`` and ``iteration``. ``sharpness``, preconditioned for Adam;
        ``threshold``, for the learning rate of the step; and ``ratio``, sharpness over
        threshold. Without a dimension: ``reached``, the first step whose ratio is at least
        1, NaN if there is none; and, over the evaluations since that step,
        ``ratio_median``, ``ratio_min``, ``ratio_max`` and ``share_near``, the share within
        10 percent of the threshold.

    Raises
    ------
    KeyError
        If no sharpness or no learning rate was recorded.
    ValueError
        If the run does not say how it was trained and `optimizer` is not given; or as
        `stability_threshold`.

    Notes
    -----
    The threshold holds for full-batch steps; with minibatches sharpness mostly stays below
    it [1]_. The sharpness does not include an L2 penalty of the optimizer, which would add
    to it: the ratio is too low by weight decay over threshold. That training hovers at
    ratios near 1, the edge of stability, was observed in [1]_ and [2]_; the 10 percent are
    our own criterion.

    References
    ----------
    .. [1] J. Cohen, S. Kaur, Y. Li, J. Z. Kolter, A. Talwalkar, "Gradient Descent on Neural
       Networks Typically Occurs at the Edge of Stability", ICLR 2021, arXiv 2103.00065.
    .. [2] J. Cohen et al., "Adaptive Gradient Methods at the Edge of Stability", 2022,
       arXiv 2207.14484.
    """
    rule, beta = _rule_and_momentum(run, optimizer, momentum)
    name = "preconditioned_sharpness" if rule == "adam" else "sharpness"
    missing = [n for n in (name, "lr") if n not in run.metrics]
    if missing:
        raise KeyError(
            f"No {missing[0]} in {run.location}; it has {run.metrics}. Record it with "
            f"--sharpness-every of traj-train, or by recorder.log({name}=...) in your own "
            "loop."
        )
    values = run.steps[name].values
    at = np.flatnonzero(np.isfinite(values))
    lr = run.steps["lr"].values[at]
    sharpness = xr.DataArray(values[at], step_coordinates(run, at), (STEP,))
    with np.errstate(divide="ignore"):
        threshold = stability_threshold(
            sharpness.copy(data=lr), momentum=beta, optimizer=rule
        )
    result = xr.Dataset(
        {"sharpness": sharpness, "threshold": threshold, "ratio": sharpness / threshold}
    )
    attributes = {
        "run": run.location,
        "optimizer": rule,
        "momentum": beta,
        "recorded_as": name,
        "source": SOURCE,
    }
    result = describe(result, LONG_NAMES).assign(_summary(result["ratio"]))
    return index_epochs(result.assign_attrs(attributes))


def _rule_and_momentum(
    run: Run, optimizer: Rule | None, momentum: float | None
) -> tuple[Rule, float]:
    """Return rule and momentum, as given or from the training settings."""
    recorded = training_settings(run.attrs).get("optimizer")
    if optimizer is None and recorded not in RULES:
        raise ValueError(
            f"{run.location} does not say by which optimizer it was trained; give "
            "`optimizer` ('sgd', 'nesterov' or 'adam') and `momentum`."
        )
    if optimizer is None:
        rule, beta = RULES[str(recorded)]
    else:
        rule, beta = optimizer, 0.9 if optimizer == "adam" else 0.0
    return rule, beta if momentum is None else momentum


def _summary(ratio: xr.DataArray) -> dict[str, float]:
    """Return the first step at the threshold, and statistics of the ratio from there."""
    values = ratio.values
    above = np.flatnonzero(values >= 1)
    if not len(above):
        return dict.fromkeys(SUMMARY, np.nan)
    reached = values[above[0] :]
    return {
        "reached": float(ratio[STEP].values[above[0]]),
        "ratio_median": float(np.median(reached)),
        "ratio_min": float(reached.min()),
        "ratio_max": float(reached.max()),
        "share_near": float((np.abs(reached - 1) <= THRESHOLD_RTOL).mean()),
    }
