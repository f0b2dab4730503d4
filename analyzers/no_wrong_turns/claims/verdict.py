"""Whether a number supports a statement, at two standard errors."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Seen = Literal["seen", "not seen", "not decided"]

SURE: Final = 2.0
"""Standard errors that a number has to be away from what would change the verdict."""

IN_WORDS: Final = {"gamma": "gamma", "rsi": "RSI", "eb": "EB", "lolr": "loLR"}
"""Quantities as sentences name them."""


class Measured(NamedTuple):
    """A number and its standard error."""

    value: float
    stderr: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.stderr:.1g}"


UNKNOWN: Final = Measured(math.nan, math.nan)
"""Of what there is no run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What became of a statement.

    Attributes
    ----------
    claim : str
        The statement, in one sentence, with what exactly was asked.
    figure : str
        Number of the paper's figure it belongs to, or ``"controls"``.
    seen : {"seen", "not seen", "not decided"}
        Not decided: the numbers are within two standard errors of the limit, or there are
        no runs to tell.
    numbers : str
        What the verdict rests on, or what is missing, in one sentence.
    """

    claim: str
    figure: str
    seen: Seen
    numbers: str


def inside(number: Measured, *, low: float = -math.inf, high: float = math.inf) -> Seen:
    """Tell whether a number lies between two limits.

    Parameters
    ----------
    number : Measured
        The number.
    low, high : float, default: no limit
        The limits.

    Returns
    -------
    {"seen", "not seen", "not decided"}
        Seen if all of value ± 2 stderr lies between them, not seen if none of it does.
        Not decided if the number is NaN.
    """
    bottom = number.value - SURE * number.stderr
    top = number.value + SURE * number.stderr
    if bottom > low and top < high:
        return "seen"
    return "not seen" if top < low or bottom > high else "not decided"


def all_of(verdicts: Iterable[Seen]) -> Seen:
    """Put verdicts together: one that is not seen decides, then one not decided."""
    found = set(verdicts)
    if "not seen" in found:
        return "not seen"
    return "seen" if found == {"seen"} else "not decided"


def exceeds(a: Measured, b: Measured) -> Seen:
    """Tell whether a is larger than b; their errors are independent."""
    return inside(difference(a, b), low=0)


def difference(a: Measured, b: Measured) -> Measured:
    """Subtract b from a; their errors are independent."""
    return Measured(a.value - b.value, math.hypot(a.stderr, b.stderr))


def ratio(a: Measured, b: Measured) -> Measured:
    """Divide a by b, to first order; their errors are independent."""
    if not a.value or not b.value:
        return UNKNOWN
    value = a.value / b.value
    relative = math.hypot(a.stderr / a.value, b.stderr / b.value)
    return Measured(value, abs(value) * relative)


def listed(numbers: Iterable[tuple[object, Measured]]) -> str:
    """Write numbers with their names, in order."""
    return ", ".join(f"{name}: {number}" for name, number in numbers)
