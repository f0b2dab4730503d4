"""Statements on how gamma differs between settings."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from analyzers.no_wrong_turns.claims.verdict import (
    IN_WORDS,
    UNKNOWN,
    Finding,
    Measured,
    Seen,
    all_of,
    exceeds,
    inside,
    listed,
    ratio,
)

ALIKE: Final = 0.25
"""Numbers whose ratio is at most so far from 1 are called alike."""

ROOT: Final = (0.25, 0.75)
"""Exponents of the batch size that are roughly a half."""


def grows_with_batch_size(gammas: Mapping[int, Measured]) -> Finding:
    """Test whether gamma is larger for every larger batch.

    Parameters
    ----------
    gammas : mapping from int to Measured
        Mid-run means by batch size.

    Returns
    -------
    Finding
        Seen if each is larger than that of the next smaller batch.
    """
    return Finding(
        claim="gamma grows with the batch size.",
        figure="6",
        seen=_in_order([gammas[size] for size in sorted(gammas)]),
        numbers=listed(sorted(gammas.items())) + ".",
    )


def _in_order(numbers: Sequence[Measured]) -> Seen:
    return all_of(exceeds(b, a) for a, b in pairwise(numbers))


def scales_with_root_of_batch_size(gammas: Mapping[int, Measured]) -> Finding:
    """Test whether gamma goes roughly with the square root of the batch size.

    Parameters
    ----------
    gammas : mapping from int to Measured
        Mid-run means by batch size.

    Returns
    -------
    Finding
        Seen if the exponent, from a straight line through the logarithms with the errors
        as weights, lies inside `ROOT`.
    """
    exponent = _exponent(gammas)
    return Finding(
        claim="gamma scales roughly with the square root of the batch size: the exponent "
        f"lies between {ROOT[0]} and {ROOT[1]}.",
        figure="6",
        seen=inside(exponent, low=ROOT[0], high=ROOT[1]),
        numbers=f"The exponent is {exponent}.",
    )


def _exponent(gammas: Mapping[int, Measured]) -> Measured:
    """Fit a straight line through logarithms; residuals widen the error, if they do."""
    values = np.array([gamma.value for gamma in gammas.values()])
    stderrs = np.array([gamma.stderr for gamma in gammas.values()])
    if not (values > 0).all() or not (stderrs > 0).all():
        return UNKNOWN
    if len(values) < 2:
        return UNKNOWN
    x, y = np.log(np.array(list(gammas), float)), np.log(values)
    weight = (values / stderrs) ** 2
    x_mean, y_mean = np.average(x, weights=weight), np.average(y, weights=weight)
    spread = np.sum(weight * (x - x_mean) ** 2)
    slope = np.sum(weight * (x - x_mean) * (y - y_mean)) / spread
    residuals = y - y_mean - slope * (x - x_mean)
    n_free = len(x) - 2
    misfit = np.sum(weight * residuals**2) / n_free if n_free else 1.0
    return Measured(float(slope), float(np.sqrt(max(misfit, 1.0) / spread)))


def adam_is_below(gammas: Mapping[str, Measured]) -> Finding:
    """Test whether gamma of Adam is smaller than that of SGD and of momentum.

    Parameters
    ----------
    gammas : mapping from str to Measured
        Mid-run means by optimizer; ``adam``, ``sgd`` and ``momentum``.

    Returns
    -------
    Finding
        Seen if it is smaller than both.
    """
    adam = gammas.get("adam", UNKNOWN)
    return Finding(
        claim="gamma of Adam is smaller than that of SGD, with momentum or without.",
        figure="1",
        seen=all_of(
            exceeds(gammas.get(name, UNKNOWN), adam) for name in ("sgd", "momentum")
        ),
        numbers=listed(gammas.items()) + ".",
    )


def momentum_matters_little(gammas: Mapping[str, Measured]) -> Finding:
    """Test whether gamma of SGD with momentum is like that of SGD without.

    Parameters
    ----------
    gammas : mapping from str to Measured
        Mid-run means by optimizer; ``sgd`` and ``momentum``.

    Returns
    -------
    Finding
        Seen if they are `ALIKE`.
    """
    quotient = ratio(*(gammas.get(name, UNKNOWN) for name in ("momentum", "sgd")))
    return Finding(
        claim="Momentum changes gamma little: by less than a quarter of that of SGD.",
        figure="1",
        seen=_alike(quotient),
        numbers=f"The ratio is {quotient}.",
    )


def _alike(quotient: Measured) -> Seen:
    return inside(quotient, low=1 - ALIKE, high=1 + ALIKE)


def adam_varies_less(variances: Mapping[str, Measured]) -> Finding:
    """Test whether gamma of Adam varies less within epochs than that of others.

    Parameters
    ----------
    variances : mapping from str to Measured
        Variances within epochs by optimizer, ``adam`` and others.

    Returns
    -------
    Finding
        Seen if that of Adam is the smallest.
    """
    adam = variances.get("adam", UNKNOWN)
    return Finding(
        claim="gamma of Adam varies less from step to step.",
        figure="1",
        seen=all_of(
            exceeds(other, adam) for name, other in variances.items() if name != "adam"
        ),
        numbers=f"Variance within epochs: {listed(variances.items())}.",
    )


def adam_travels_further(distances: Mapping[str, Measured]) -> Finding:
    """Test whether Adam ends further from where it began than the others.

    Parameters
    ----------
    distances : mapping from str to Measured
        |x_T - x_0| by optimizer, ``adam`` and others.

    Returns
    -------
    Finding
        Seen if that of Adam is the largest.
    """
    adam = distances.get("adam", UNKNOWN)
    return Finding(
        claim="Adam ends further from its start than SGD, with momentum or without.",
        figure="12",
        seen=all_of(
            exceeds(adam, other) for name, other in distances.items() if name != "adam"
        ),
        numbers=f"Distance from the start: {listed(distances.items())}.",
    )


def seeds_agree(
    by_seed: Sequence[Measured],
    by_setting: Sequence[Measured],
    *,
    quantity: str,
    figure: str,
) -> Finding:
    """Test whether seeds differ less than settings do.

    Parameters
    ----------
    by_seed : sequence of Measured
        Mid-run means of runs that differ in the seed, two or more.
    by_setting : sequence of Measured
        Mid-run means of runs that differ in a setting, two or more.
    quantity : str
        What was measured: ``"gamma"``, ``"rsi"`` or ``"eb"``.
    figure : str
        The figure that shows it.

    Returns
    -------
    Finding
        Seen if the standard deviation over seeds is less than half of that over settings;
        its own error is that for normally distributed numbers, ``s / sqrt(2 (n - 1))``.
    """
    of_seeds, of_settings = _deviation(by_seed), _deviation(by_setting)
    # The settings are what they are: no sample of others.
    compared = ratio(of_seeds, Measured(of_settings.value, 0.0))
    mean = float(np.mean([number.value for number in by_seed] or math.nan))
    return Finding(
        claim=f"{IN_WORDS[quantity]} depends little on the seed: seeds differ by less than half of "
        "what batch sizes or optimizers do.",
        figure=figure,
        seen=inside(compared, high=0.5),
        numbers=f"Over {len(by_seed)} seeds the mean is {mean:.3g} and the standard "
        f"deviation {of_seeds}; over {len(by_setting)} settings it is "
        f"{of_settings.value:.2g}.",
    )


def _deviation(numbers: Sequence[Measured]) -> Measured:
    if len(numbers) < 2:
        return UNKNOWN
    deviation = float(np.std([number.value for number in numbers], ddof=1))
    return Measured(deviation, deviation / math.sqrt(2 * (len(numbers) - 1)))


def budgets_agree(
    by_budget: Mapping[int, Measured], *, quantity: str, figure: str
) -> Finding:
    """Test whether runs of other lengths measure alike in the same epochs.

    Parameters
    ----------
    by_budget : mapping from int to Measured
        Means over the same epochs, by epoch budget.
    quantity : str
        What was measured: ``"gamma"``, ``"rsi"`` or ``"eb"``.
    figure : str
        The figure that shows it.

    Returns
    -------
    Finding
        Seen if each is `ALIKE` to that of the longest run.
    """
    longest = max(by_budget, default=0)
    quotients = {
        budget: ratio(number, by_budget[longest])
        for budget, number in sorted(by_budget.items())
        if budget != longest
    }
    return Finding(
        claim=f"{IN_WORDS[quantity]} depends little on the epoch budget before the end: in the "
        "middle epochs of the shortest run, other budgets differ by less than a quarter.",
        figure=figure,
        seen=all_of(_alike(quotient) for quotient in quotients.values()),
        numbers=f"Relative to {longest} epochs: {listed(quotients.items())}.",
    )


def mlp_is_more_regular(variances: Mapping[str, Measured]) -> Finding:
    """Test whether gamma of the MLP varies less within epochs than the ResNet's.

    Parameters
    ----------
    variances : mapping from str to Measured
        Relative variances, ``mlp`` and ``resnet``.

    Returns
    -------
    Finding
        Seen if that of the MLP is smaller.
    """
    mlp, resnet = (variances.get(name, UNKNOWN) for name in ("mlp", "resnet"))
    return Finding(
        claim="gamma of an MLP is more regular than that of a ResNet: it varies less from "
        "step to step, relative to its mean.",
        figure="14",
        seen=exceeds(resnet, mlp),
        numbers=f"Relative variance: {listed(variances.items())}.",
    )


def depth_raises_gamma(gammas: Mapping[str, Measured]) -> Finding:
    """Test whether gamma is larger for every deeper model.

    Parameters
    ----------
    gammas : mapping from str to Measured
        Mid-run means by model, from shallow to deep.

    Returns
    -------
    Finding
        Seen if each is larger than that of the model before.
    """
    return Finding(
        claim="gamma grows slightly with depth.",
        figure="1",
        seen=_in_order(list(gammas.values())),
        numbers=listed(gammas.items()) + ".",
    )


def width_matters_little(pairs: Mapping[str, tuple[Measured, Measured]]) -> Finding:
    """Test whether gamma of models of other widths is alike.

    Parameters
    ----------
    pairs : mapping from str to tuple of Measured
        Mid-run means of the model of standard width and of another, by name.

    Returns
    -------
    Finding
        Seen if the two of every pair are `ALIKE`.
    """
    quotients = {name: ratio(other, one) for name, (one, other) in pairs.items()}
    return Finding(
        claim="Width matters little: another width changes gamma by less than a quarter.",
        figure="1",
        seen=all_of(_alike(quotient) for quotient in quotients.values()),
        numbers=f"Relative to standard width: {listed(quotients.items())}.",
    )
