"""Criteria: functions that turn the numbers of several runs into an outcome."""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Final

import numpy as np

from analyzers.no_wrong_turns.claims.verdict import (
    UNKNOWN,
    Measured,
    Numbers,
    Outcome,
    all_of,
    exceeds,
    inside,
    listed,
    ratio,
)
from analyzers.no_wrong_turns.runs import standard_width

Criterion = Callable[[Numbers], Outcome]

RATIO_TOLERANCE: Final = 0.25
"""Numbers count as alike if their ratio differs from 1 by at most this."""

SEED: Final = "seed"
SETTING: Final = "setting"
"""First part of each label that `seeds_vary_less` takes."""


def increasing(numbers: Numbers) -> Outcome:
    """Test whether every number is larger than the previous one."""
    pairs = pairwise(numbers.values())
    verdict = all_of(exceeds(later, earlier) for earlier, later in pairs)
    return Outcome(verdict, f"{listed(numbers)}.")


def below(name: str, others: Iterable[str]) -> Criterion:
    """Return the criterion that the number labelled `name` is smaller than all `others`."""

    def criterion(numbers: Numbers) -> Outcome:
        own = numbers.get(name, UNKNOWN)
        verdict = all_of(exceeds(numbers.get(other, UNKNOWN), own) for other in others)
        return Outcome(verdict, f"{listed(numbers)}.")

    return criterion


def smallest(name: str, template: str = "{}.") -> Criterion:
    """Return the criterion that the number labelled `name` is the smallest."""

    def criterion(numbers: Numbers) -> Outcome:
        own = numbers.get(name, UNKNOWN)
        others = [number for label, number in numbers.items() if label != name]
        verdict = all_of(exceeds(other, own) for other in others)
        return Outcome(verdict, template.format(listed(numbers)))

    return criterion


def largest(name: str, template: str = "{}.") -> Criterion:
    """Return the criterion that the number labelled `name` is the largest."""

    def criterion(numbers: Numbers) -> Outcome:
        own = numbers.get(name, UNKNOWN)
        others = [number for label, number in numbers.items() if label != name]
        verdict = all_of(exceeds(own, other) for other in others)
        return Outcome(verdict, template.format(listed(numbers)))

    return criterion


def each_inside(
    template: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    of: Callable[[Numbers], Numbers] = lambda numbers: numbers,
) -> Criterion:
    """Return the criterion that all numbers derived by `of` lie between limits."""

    def criterion(numbers: Numbers) -> Outcome:
        derived = of(numbers)
        verdict = all_of(inside(n, low=low, high=high) for n in derived.values())
        return Outcome(verdict, template.format(listed(derived)))

    return criterion


def alike(template: str, *, of: Callable[[Numbers], Numbers]) -> Criterion:
    """Return the criterion that all ratios derived by `of` are near 1."""
    return each_inside(
        template, low=1 - RATIO_TOLERANCE, high=1 + RATIO_TOLERANCE, of=of
    )


def positive(name: str, template: str) -> Criterion:
    """Return the criterion that the number labelled `name` is positive."""
    # The outcome lists the other numbers for information.

    def criterion(numbers: Numbers) -> Outcome:
        verdict = inside(numbers.get(name, UNKNOWN), low=0)
        return Outcome(verdict, template.format(listed(numbers)))

    return criterion


def ratio_of(name: str, other: str) -> Callable[[Numbers], Numbers]:
    """Return a function that divides the number labelled `name` by that labelled `other`."""
    return lambda numbers: {
        "": ratio(numbers.get(name, UNKNOWN), numbers.get(other, UNKNOWN))
    }


def relative_to_standard_width(numbers: Numbers) -> Numbers:
    """Divide the numbers of non-standard widths by the numbers of standard width."""
    return {
        name: ratio(number, numbers[standard])
        for name, number in numbers.items()
        if (standard := standard_width(name)) != name
    }


def exponent(numbers: Numbers) -> Numbers:
    """Return the exponent of a power law fitted to numbers as a function of their labels."""
    # Deviations from the law increase the error.
    values = np.array([number.value for number in numbers.values()])
    stderrs = np.array([number.stderr for number in numbers.values()])
    if len(values) < 2 or not (values > 0).all() or not (stderrs > 0).all():
        return {"": UNKNOWN}
    x, y = np.log(np.array(list(numbers), float)), np.log(values)
    weight = (values / stderrs) ** 2
    x_mean, y_mean = np.average(x, weights=weight), np.average(y, weights=weight)
    spread = np.sum(weight * (x - x_mean) ** 2)
    slope = np.sum(weight * (x - x_mean) * (y - y_mean)) / spread
    residuals = y - y_mean - slope * (x - x_mean)
    n_free = len(x) - 2
    misfit = np.sum(weight * residuals**2) / n_free if n_free else 1.0
    return {"": Measured(float(slope), float(np.sqrt(max(misfit, 1.0) / spread)))}


def near_longest(numbers: Numbers) -> Outcome:
    """Test whether numbers by epoch budget are near the number of the longest budget."""
    longest = max(numbers)
    shorter = {n: number for n, number in numbers.items() if n != longest}
    return alike(
        f"Relative to {longest} epochs: {{}}.",
        of=lambda _: {n: ratio(v, numbers[longest]) for n, v in shorter.items()},
    )(numbers)


def seeds_vary_less(numbers: Numbers) -> Outcome:
    """Test whether numbers vary at most half as much over seeds as over settings."""
    by_seed, by_setting = (
        [number.value for (kind, _), number in numbers.items() if kind == group]
        for group in (SEED, SETTING)
    )
    over_seeds, over_settings = _deviation(by_seed), _deviation(by_setting)
    # The settings are not a random sample, so their deviation has no error.
    compared = ratio(over_seeds, Measured(over_settings.value, 0.0))
    return Outcome(
        inside(compared, high=0.5),
        f"Over {len(by_seed)} seeds the mean is {np.mean(by_seed):.3g} and the standard "
        f"deviation {over_seeds}; over {len(by_setting)} settings the standard deviation is "
        f"{over_settings.value:.2g}.",
    )


def _deviation(values: list[float]) -> Measured:
    """Return the standard deviation, and its error if the values are normally distributed."""
    if len(values) < 2:
        return UNKNOWN
    deviation = float(np.std(values, ddof=1))
    return Measured(deviation, deviation / math.sqrt(2 * (len(values) - 1)))
