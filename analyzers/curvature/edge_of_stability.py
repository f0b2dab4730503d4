"""Edge of stability: the sharpness relative to the largest sharpness of stable steps."""

from typing import Final, Literal, TypeVar

import numpy as np
import xarray as xr

from analyzers._engine.labels import describe, step_coordinates
from analyzers._engine.rules import SGD
from trajstore.format.arrays import STEP
from trajstore.format.attrs import MOMENTUM, training_settings
from trajstore.reading.accepts_path import accepts_path
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

ADAM: Final = ("torch.optim.adam.Adam", "torch.optim.adamw.AdamW")
"""Classes of the optimizer Adam in the facts of a store, which lack its betas."""

THRESHOLD_RTOL: Final = 0.1
"""Largest relative distance from the threshold that counts as near: our own criterion."""

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
"""Variables of the result that have no dimension."""


def stability_threshold(
    lr: Rate, *, momentum: float = 0.0, optimizer: Rule = "sgd"
) -> Rate:
    r"""Largest Hessian eigenvalue at which an optimizer is stable on a quadratic.

    With the learning rate :math:`\eta`, the gradient g and the momentum :math:`\beta`, the
    thresholds are [1]_ [2]_:

    - gradient descent: :math:`2 / \eta`;
    - heavy-ball (Polyak) momentum, :math:`m \leftarrow \beta m + g`,
      :math:`x \leftarrow x - \eta m`: :math:`2 (1 + \beta) / \eta`;
    - Nesterov momentum, with the same m, :math:`x \leftarrow x - \eta (g + \beta m)`:
      :math:`(2 + 2 \beta) / ((1 + 2 \beta) \eta)`;
    - Adam, for the *preconditioned* Hessian :math:`P^{-1} H`, with the preconditioner P
      taken as constant: :math:`(2 + 2 \beta_1) / ((1 - \beta_1) \eta)`, which is
      :math:`38 / \eta` at :math:`\beta_1 = 0.9`. This is the threshold of heavy-ball
      momentum with the learning rate :math:`(1 - \beta_1) \eta`, since Adam averages
      gradients instead of summing them.

    Parameters
    ----------
    lr : float or xarray.DataArray
        Learning rate, or the learning rates of several steps, such as ``run.steps.lr``.
    momentum : float, default: 0.0
        Momentum, from 0 to below 1; for Adam, the first beta.
    optimizer : {"sgd", "nesterov", "adam"}, default: "sgd"
        Optimizer. ``"sgd"`` covers plain gradient descent and heavy-ball momentum, as
        ``torch.optim.SGD`` does.

    Returns
    -------
    float or xarray.DataArray
        Threshold, of the type and shape of `lr`, in the inverse of its units.

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


@accepts_path
def edge_of_stability(
    run: Run, *, optimizer: Rule | None = None, momentum: float | None = None
) -> xr.Dataset:
    """Ratio of the largest Hessian eigenvalue to the stability threshold of the optimizer.

    Parameters
    ----------
    run : trajstore.Run
        Run with the sharpness logged at some of its steps: by ``traj-train run NAME
        --sharpness-every 10``, or by ``recorder.log(sharpness=...)`` in your own loop. For
        Adam, the logged scalar must be ``preconditioned_sharpness``.
    optimizer : {"sgd", "nesterov", "adam"}, optional
        Optimizer, as `stability_threshold` takes it. Default: from the training settings in
        ``run.attrs`` or, without these, from the optimizer's class in the store.
    momentum : float, optional
        Momentum, as `stability_threshold` takes it. Default: from the training settings or,
        without these, from the settings of the optimizer in the store, if they belong to
        `optimizer`; otherwise 0.9 for Adam and 0 for others.

    Returns
    -------
    xarray.Dataset
        Loaded. Dimension ``step``, the steps at which the sharpness was logged, with the
        coordinates ``epoch`` and ``iteration``. By step: ``sharpness``, preconditioned for
        Adam; ``threshold``, at the learning rate of the step; and ``ratio``, the sharpness
        divided by the threshold. Without a dimension: ``reached``, the first step whose
        ratio is at least 1; and, over the evaluations from that step on, ``ratio_median``,
        ``ratio_min``, ``ratio_max``, and ``share_near``, the share of evaluations within 10
        percent of the threshold. These are NaN if no ratio reaches 1.

    Raises
    ------
    KeyError
        If the sharpness or the learning rate was not recorded.
    ValueError
        If neither the run nor `optimizer` names the optimizer, or where
        `stability_threshold` raises it.

    Notes
    -----
    The threshold holds for full-batch steps; with minibatches, the sharpness mostly stays
    below it [1]_. The sharpness does not include an L2 penalty of the optimizer, which would
    raise it by the weight decay: with such a penalty, the ratio is too low by the weight
    decay divided by the threshold. Training was observed to hover at ratios near 1, the
    edge of stability, in [1]_ and [2]_; the limit of 10 percent is our own criterion.

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
    known = np.flatnonzero(np.isfinite(values))
    lr = run.steps["lr"].values[known]
    sharpness = xr.DataArray(values[known], step_coordinates(run, known), (STEP,))
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
    """Return the rule and momentum, as given or as recorded."""
    name = training_settings(run.attrs).get("optimizer")
    recorded = RULES[str(name)] if name in RULES else _from_facts(run)
    if optimizer is None and recorded is None:
        raise ValueError(
            f"{run.location} does not say by which optimizer it was trained; give "
            "`optimizer` ('sgd', 'nesterov' or 'adam') and `momentum`."
        )
    rule: Rule = optimizer or recorded[0]  # type: ignore[index]
    beta = 0.9 if rule == "adam" else 0.0
    # Nesterov's method has the momentum of SGD.
    if recorded is not None and (rule == "adam") == (recorded[0] == "adam"):
        beta = recorded[1]
    return rule, beta if momentum is None else momentum


def _from_facts(run: Run) -> tuple[Rule, float] | None:
    """Return the rule and momentum that the store names, if all groups share them."""
    found: set[tuple[Rule, float]] = set()
    for group in run.stored.document.optimizer:
        if group.optimizer in ADAM:
            found.add(("adam", 0.9))
        for _, settings in group.settings if group.optimizer == SGD else ():
            rule: Rule = "nesterov" if settings.get("nesterov") else "sgd"
            found.add((rule, settings.get("momentum", 0.0)))
        if group.optimizer not in {SGD, *ADAM}:
            return None
    return found.pop() if len(found) == 1 else None


def _summary(ratio: xr.DataArray) -> dict[str, float]:
    """Return the first step at or above the threshold, and statistics from there on."""
    values = ratio.values
    above = np.flatnonzero(values >= 1)
    if not len(above):
        return dict.fromkeys(SUMMARY, np.nan)
    ratios = values[above[0] :]
    return {
        "reached": float(ratio[STEP].values[above[0]]),
        "ratio_median": float(np.median(ratios)),
        "ratio_min": float(ratios.min()),
        "ratio_max": float(ratios.max()),
        "share_near": float((np.abs(ratios - 1) <= THRESHOLD_RTOL).mean()),
    }
