"""Numbers with standard errors, and verdicts on them at two standard errors."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple

Verdict = Literal["supported", "contradicted", "inconclusive"]

DECISIVE_STDERRS: Final = 2.0
"""Number of standard errors from a limit at which a verdict is decisive."""

ROUNDING: Final = 1e-14
"""Relative error of the mean of equal numbers in float64."""


class Measured(NamedTuple):
    """A number and its standard error."""

    value: float
    stderr: float

    def __str__(self) -> str:
        # Equal numbers of several runs have a spread that is rounding.
        is_rounding = self.stderr <= ROUNDING * abs(self.value)
        return f"{self.value:.3g} ± {0 if is_rounding else self.stderr:.1g}"


Numbers = Mapping[Any, Measured]
"""Numbers of several runs, by label."""

UNKNOWN: Final = Measured(math.nan, math.nan)
"""The number of a missing run."""


class Outcome(NamedTuple):
    """A verdict, and a sentence with the numbers that it is based on."""

    verdict: Verdict
    numbers: str


def inside(
    number: Measured, *, low: float = -math.inf, high: float = math.inf
) -> Verdict:
    """Return supported if the error bar is within limits, contradicted if it is outside."""
    bottom = number.value - DECISIVE_STDERRS * number.stderr
    top = number.value + DECISIVE_STDERRS * number.stderr
    if bottom > low and top < high:
        return "supported"
    return "contradicted" if top < low or bottom > high else "inconclusive"


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """Combine verdicts: contradicted if any is, supported if all are, else inconclusive."""
    found = set(verdicts)
    if "contradicted" in found:
        return "contradicted"
    return "supported" if found == {"supported"} else "inconclusive"


def exceeds(a: Measured, b: Measured) -> Verdict:
    """Test whether a is larger than b, assuming independent errors."""
    return inside(difference(a, b), low=0)


def difference(a: Measured, b: Measured) -> Measured:
    """Subtract b from a, assuming independent errors."""
    return Measured(a.value - b.value, math.hypot(a.stderr, b.stderr))


def ratio(a: Measured, b: Measured) -> Measured:
    """Divide a by b, assuming independent errors, to first order."""
    if not a.value or not b.value:
        return UNKNOWN
    value = a.value / b.value
    relative = math.hypot(a.stderr / a.value, b.stderr / b.value)
    return Measured(value, abs(value) * relative)


def listed(numbers: Numbers) -> str:
    """Write numbers with their labels; an empty label is left out."""
    return ", ".join(
        f"{label}: {number}" if label != "" else f"{number}"
        for label, number in numbers.items()
    )
