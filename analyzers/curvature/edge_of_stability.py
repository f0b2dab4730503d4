"""Sharpness beside the largest that steps of a given length are stable at."""

from typing import Any, Final, Literal, TypeVar

import numpy as np
import xarray as xr

from trajstore.format.arrays import STEP
from trajstore.reading.epochs import index_epochs
from trajstore.reading.run import Run

Rule = Literal["sgd", "nesterov", "adam"]

Rate = TypeVar("Rate", float, xr.DataArray)

RULES: Final[dict[str, tuple[Rule, float]]] = {
    "sgd": ("sgd", 0.0),
    "momentum": ("sgd", 0.9),
    "adam": ("adam", 0.9),
}
"""Rule and momentum of what ``run.attrs["training"]["optimizer"]`` names."""

NEAR: Final = 0.1
"""How far from the threshold, relative to it, is near: our own criterion."""

SOURCE: Final = (
    "J. Cohen, S. Kaur, Y. Li, J. Z. Kolter, A. Talwalkar, 'Gradient Descent on Neural "
    "Networks Typically Occurs at the Edge of Stability', ICLR 2021, arXiv 2103.00065; of "
    "Adam J. Cohen et al., 'Adaptive Gradient Methods at the Edge of Stability', 2022, "
    "arXiv 2207.14484"
)


def stability_threshold(
    lr: Rate, *, momentum: float = 0.0, optimizer: Rule = "sgd"
) -> Rate:
    r"""Largest eigenvalue of a quadratic that an optimizer does not diverge on.

    With :math:`\eta` the learning rate and :math:`\beta` the momentum,

    - gradient descent: :math:`2 / \eta`;
    - with heavy-ball (Polyak) momentum, :math:`m \leftarrow \beta m + g`,
      :math:`x \leftarrow x - \eta m`: :math:`2 (1 + \beta) / \eta`;
    - with Nesterov's, :math:`x \leftarrow x - \eta (g + \beta m)`:
      :math:`(2 + 2 \beta) / ((1 + 2 \beta) \eta)`;
    - Adam, of the *preconditioned* Hessian :math:`P^{-1} H`, as if P stood still:
      :math:`(2 + 2 \beta_1) / ((1 - \beta_1) \eta)`, which is :math:`38 / \eta` at
      :math:`\beta_1 = 0.9`. It is that of heavy-ball momentum with the learning rate
      :math:`(1 - \beta_1) \eta`, since Adam averages gradients and does not sum them.

    Parameters
    ----------
    lr : float or xarray.DataArray
        The learning rate, or one for every step, such as ``run.steps.lr``.
    momentum : float, default: 0.0
        From 0 to below 1; of Adam its first beta.
    optimizer : {"sgd", "nesterov", "adam"}, default: "sgd"
        ``"sgd"``: plain, or with heavy-ball momentum, as ``torch.optim.SGD``.

    Returns
    -------
    float or xarray.DataArray
        As `lr`; units of 1 over those of `lr`.

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
    """Sharpness of a run, over what its steps are stable at.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`, with sharpness logged at some steps:
        ``traj-train run NAME --sharpness-every 10`` does, or in a loop of your own
        ``recorder.log(sharpness=...)``; for Adam ``preconditioned_sharpness``.
    optimizer : {"sgd", "nesterov", "adam"}, optional
        See `stability_threshold`. Default: as the run says that it was trained.
    momentum : float, optional
        The same. Default: as the run says, or else 0, and 0.9 of Adam.

    Returns
    -------
    xarray.Dataset
        Loaded. Dimension ``step``: those at which sharpness was logged; with the
        coordinates ``epoch`` and ``iteration``. ``sharpness``, preconditioned if Adam has
        trained; ``threshold``, of the learning rate of the step; and ``ratio`` of both.
        Without dimension: ``reached``, the first step whose ratio is 1 or more, NaN if
        there is none; and, of the evaluations from there on, ``ratio_median``,
        ``ratio_min``, ``ratio_max`` and ``share_near``, how many of them are within
        10 percent of the threshold.

    Raises
    ------
    KeyError
        If no sharpness or no learning rate was recorded.
    ValueError
        If the run does not say how it was trained, and `optimizer` is not given; or as
        `stability_threshold` raises it.

    Notes
    -----
    The threshold is that of full-batch steps; with minibatches sharpness mostly stays below
    it [1]_. An L2 penalty of the optimizer is not part of the sharpness, and
    adds itself to it: the ratio is too low by weight decay over threshold. That ratios
    near 1 mean the edge of stability is the observation of [1]_ and [2]_; what is near is
    our own criterion.

    References
    ----------
    .. [1] J. Cohen, S. Kaur, Y. Li, J. Z. Kolter, A. Talwalkar, "Gradient Descent on Neural
       Networks Typically Occurs at the Edge of Stability", ICLR 2021, arXiv 2103.00065.
    .. [2] J. Cohen et al., "Adaptive Gradient Methods at the Edge of Stability", 2022,
       arXiv 2207.14484.
    """
    rule, beta = _how(run, optimizer, momentum)
    name = "preconditioned_sharpness" if rule == "adam" else "sharpness"
    missing = [n for n in (name, "lr") if n not in run.metrics]
    if missing:
        raise KeyError(
            f"No {missing[0]} in {run.location}; it has {run.metrics}. Record it with "
            "--sharpness-every of traj-train, or by recorder.log("
            f"{name}=...) in a loop of your own."
        )
    values = run.steps[name].values
    at = np.flatnonzero(np.isfinite(values))
    lr = run.steps["lr"].values[at]
    coordinates: dict[str, Any] = {
        STEP: run.stored.step_numbers[at],
        "epoch": (STEP, run.stored.epochs[at]),
        "iteration": (STEP, run.stored.iterations[at]),
    }
    sharpness = xr.DataArray(values[at], coordinates, (STEP,))
    with np.errstate(divide="ignore"):
        threshold = stability_threshold(
            sharpness.copy(data=lr), momentum=beta, optimizer=rule
        )
    result = xr.Dataset(
        {"sharpness": sharpness, "threshold": threshold, "ratio": sharpness / threshold}
    )
    for variable, long_name in LONG_NAMES.items():
        result[variable].attrs = {"long_name": long_name, "units": "1"}
    attributes = {
        "run": run.location,
        "optimizer": rule,
        "momentum": beta,
        "recorded_as": name,
        "source": SOURCE,
    }
    return index_epochs(
        result.assign(_summary(result["ratio"])).assign_attrs(attributes)
    )


LONG_NAMES: Final = {
    "sharpness": "largest eigenvalue of the Hessian",
    "threshold": "largest sharpness that steps are stable at",
    "ratio": "sharpness over the threshold",
}


def _how(
    run: Run, optimizer: Rule | None, momentum: float | None
) -> tuple[Rule, float]:
    """Return rule and momentum, as given or as the run says."""
    told: Any = run.attrs.get("training", {}).get("optimizer")
    if optimizer is None and told not in RULES:
        raise ValueError(
            f"{run.location} does not say by which optimizer it was trained; give "
            "`optimizer` ('sgd', 'nesterov' or 'adam') and `momentum`."
        )
    if optimizer is None:
        rule, beta = RULES[told]
    else:
        rule, beta = optimizer, 0.9 if optimizer == "adam" else 0.0
    return rule, beta if momentum is None else momentum


def _summary(ratio: xr.DataArray) -> dict[str, float]:
    """Say when the threshold is reached, and what happens then."""
    values = ratio.values
    above = np.flatnonzero(values >= 1)
    if not len(above):
        return dict.fromkeys(SUMMARY, np.nan)
    then = values[above[0] :]
    return {
        "reached": float(ratio[STEP].values[above[0]]),
        "ratio_median": float(np.median(then)),
        "ratio_min": float(then.min()),
        "ratio_max": float(then.max()),
        "share_near": float((np.abs(then - 1) <= NEAR).mean()),
    }


SUMMARY: Final = ("reached", "ratio_median", "ratio_min", "ratio_max", "share_near")
"""Variables of the result without dimension."""
