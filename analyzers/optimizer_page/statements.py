"""What papers say about optimizers, tested on the runs of the page."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Final, NamedTuple

from analyzers.no_wrong_turns.claims.verdict import (
    Measured,
    Verdict,
    all_of,
    exceeds,
    inside,
    listed,
)

Numbers = Mapping[str, Mapping[str, Measured]]


class Statement(NamedTuple):
    """A statement in our words, its source, and the numbers that decide it."""

    text: str
    source: str
    quantity: str
    optimizers: tuple[str, ...]  # all optimizers if empty
    test: Callable[[list[Measured]], Verdict]


class Finding(NamedTuple):
    """A statement, its verdict, and the numbers behind it."""

    statement: Statement
    verdict: Verdict
    numbers: str


def descending(numbers: list[Measured]) -> Verdict:
    """Test whether every number exceeds the next."""
    return all_of(exceeds(a, b) for a, b in pairwise(numbers))


def all_positive(numbers: list[Measured]) -> Verdict:
    """Test whether all numbers are positive."""
    return all_of(inside(number, low=0) for number in numbers)


def all_below_one(numbers: list[Measured]) -> Verdict:
    """Test whether all numbers are below 1."""
    return all_of(inside(number, high=1) for number in numbers)


NO_WRONG_TURNS: Final = "No Wrong Turns (arXiv 2306.11922)"
ALPHA_BETA: Final = "the alpha-beta paper (arXiv 2410.12455)"

STATEMENTS: Final = (
    Statement("Gamma is positive in the middle of training.", NO_WRONG_TURNS, "gamma", (), all_positive),
    Statement("Gamma of SGD exceeds that of Adam.", NO_WRONG_TURNS, "gamma", ("sgd", "adam"), descending),
    Statement("Gamma of momentum exceeds that of Adam.", NO_WRONG_TURNS, "gamma", ("momentum", "adam"), descending),
    Statement("Relative to its mean, gamma of SGD varies more than that of Adam.", NO_WRONG_TURNS, "variance", ("sgd", "adam"), descending),
    Statement("The smallest workable alpha + beta falls from SGD over momentum to Adam.", ALPHA_BETA, "pair", ("sgd", "momentum", "adam"), descending),
    Statement("With minibatches, sharpness stays below the threshold of full-batch steps.", "Cohen et al. (arXiv 2103.00065)", "sharpness", (), all_below_one),
)  # fmt: skip
"""The statements. Errors are those of means over seeds."""


def findings(numbers: Numbers) -> list[Finding]:
    """Test all statements; one whose numbers are missing is inconclusive."""
    return [
        _finding(statement, numbers[statement.quantity]) for statement in STATEMENTS
    ]


def _finding(statement: Statement, of_optimizers: Mapping[str, Measured]) -> Finding:
    chosen = {
        name: number
        for name, number in of_optimizers.items()
        if name in (statement.optimizers or of_optimizers)
        and number.value == number.value
    }
    missing = [name for name in statement.optimizers if name not in chosen]
    if missing or not chosen:
        needs = f"Needs {', '.join(missing) or 'known numbers'}."
        return Finding(statement, "inconclusive", needs)
    order = statement.optimizers or tuple(chosen)
    verdict = statement.test([chosen[name] for name in order])
    return Finding(statement, verdict, listed({name: chosen[name] for name in order}))
