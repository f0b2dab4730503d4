"""Test ``analyzers.no_wrong_turns.claims.table``: statements with a known answer."""

from typing import Any

import numpy as np
import pytest

from analyzers.no_wrong_turns.claims.criteria import SEED, SETTING, exponent
from analyzers.no_wrong_turns.claims.table import CLAIMS, Claim
from analyzers.no_wrong_turns.claims.verdict import Measured, Outcome, Verdict
from analyzers.no_wrong_turns.figures import FIGURES


def precise(value: float) -> Measured:
    return Measured(value, 0.001 * abs(value))


def vague(value: float) -> Measured:
    return Measured(value, abs(value))


def outcome(words: str, numbers: dict[Any, Measured]) -> Outcome:
    [claim] = [claim for claim in CLAIMS if words in claim.text]
    return claim.criterion(numbers)


SIZES = (16, 32, 64, 128)
ROOT = {size: 0.01 * size**0.5 for size in SIZES}
LINE = {size: 0.01 * size for size in SIZES}
FLAT = dict.fromkeys(SIZES, 0.01)
DIP = {16: 0.05, 32: 0.04, 64: 0.06, 128: 0.1}
DOWN = {size: 1 / size for size in SIZES}
GROWS, SCALES = "gamma grows with the batch size", "square root of the batch size"
BELOW, VARIES = "gamma is smaller for Adam", "varies less from step to step for Adam"
MOMENTUM, FURTHER = "Momentum changes gamma little", "Adam ends further"
REGULAR, DEPTH, WIDTH = "more regular for an MLP", "grows slightly with depth", "Width"
NEGATIVE, STEADY, RANKS = "almost no step", "gamma is steady", "rank correlation"
LATE, COUNTER = "distance to x* is negligible", "asymmetric linear model"
WALK, NOISE, LABELS = "random walk", "replaced by noise", "random labels"
BUDGETS = "gamma depends little on the epoch budget"

CASES: list[tuple[str, dict[Any, float], Verdict]] = [
    (GROWS, ROOT, "supported"),
    (GROWS, DIP, "contradicted"),
    (GROWS, DOWN, "contradicted"),
    (GROWS, FLAT, "inconclusive"),
    (SCALES, ROOT, "supported"),
    (SCALES, LINE, "contradicted"),
    (SCALES, FLAT, "contradicted"),
    (BELOW, {"sgd": 3, "momentum": 2, "adam": 1}, "supported"),
    (BELOW, {"sgd": 3, "momentum": 2, "adam": 1, "nsgd": 0.1}, "supported"),
    (BELOW, {"sgd": 3, "momentum": 1, "adam": 2}, "contradicted"),
    (MOMENTUM, {"sgd": 1.0, "momentum": 1.2}, "supported"),
    (MOMENTUM, {"sgd": 1.0, "momentum": 0.8}, "supported"),
    (MOMENTUM, {"sgd": 1.0, "momentum": 1.3}, "contradicted"),
    (MOMENTUM, {"sgd": 1.0, "momentum": 0.4}, "contradicted"),
    (VARIES, {"sgd": 3, "momentum": 2, "adam": 1}, "supported"),
    (VARIES, {"sgd": 3, "momentum": 1, "adam": 2}, "contradicted"),
    (FURTHER, {"sgd": 1, "momentum": 2, "adam": 3}, "supported"),
    (FURTHER, {"sgd": 1, "momentum": 3, "adam": 2}, "contradicted"),
    (REGULAR, {"mlp": 1, "resnet": 2}, "supported"),
    (REGULAR, {"mlp": 2, "resnet": 1}, "contradicted"),
    (DEPTH, {"18": 1, "50": 2, "152": 3}, "supported"),
    (DEPTH, {"18": 3, "50": 2, "152": 1}, "contradicted"),
    (WIDTH, {"a": 1, "a-2": 1, "b": 1, "b-2": 1.1}, "supported"),
    (WIDTH, {"a": 1, "a-2": 1, "b": 1, "b-2": 0.5}, "contradicted"),
    (BUDGETS, {100: 1.1, 190: 0.9, 280: 1.0}, "supported"),
    (BUDGETS, {100: 1.5, 190: 0.9, 280: 1.0}, "contradicted"),
    (BUDGETS, {100: 0.7, 190: 1.0, 280: 1.0}, "contradicted"),
    (NEGATIVE, {"net": 0.005}, "supported"),
    (NEGATIVE, {"net": 0.005, "other": 0.05}, "contradicted"),
    (STEADY, {"net": 1.5}, "supported"),
    (STEADY, {"net": 1.5, "other": 3.0}, "contradicted"),
    (RANKS, {"net": 0.8}, "supported"),
    (RANKS, {"net": -0.8}, "contradicted"),
    (LATE, {"net": 0.04}, "supported"),
    (LATE, {"net": 0.2}, "contradicted"),
    (COUNTER, {"alm": 0.2, "sm": 0.3}, "supported"),
    (COUNTER, {"alm": 0.015, "sm": 0.3}, "contradicted"),
    (WALK, {"sgd": 0.1, "momentum": -1}, "supported"),
    (WALK, {"sgd": -0.1, "momentum": 1}, "contradicted"),
    (NOISE, {"none": 0.5, "noise-gradients": 0.1}, "supported"),
    (NOISE, {"none": 0.5, "noise-gradients": 0.9}, "contradicted"),
    (LABELS, {"": 0.1}, "supported"),
    (LABELS, {"": -0.1}, "contradicted"),
]


@pytest.mark.parametrize(("words", "values", "expected"), CASES)
def test_statement_is_supported_where_it_holds(
    words: str, values: dict[Any, float], expected: Verdict
):
    found = outcome(words, {name: precise(value) for name, value in values.items()})
    assert found.verdict == expected
    assert found.numbers.endswith(".")


@pytest.mark.parametrize(("words", "values", "expected"), CASES)
def test_vague_numbers_are_inconclusive(
    words: str, values: dict[Any, float], expected: Verdict
):
    del expected
    found = outcome(words, {name: vague(value) for name, value in values.items()})
    assert found.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (BELOW, ["sgd", "adam"]),
        (BELOW, ["sgd", "momentum"]),
        (VARIES, ["sgd", "momentum"]),
        (VARIES, ["adam"]),
        (FURTHER, ["sgd", "momentum"]),
        (MOMENTUM, ["sgd", "adam"]),
        (WALK, ["momentum", "adam"]),
        (REGULAR, ["mlp"]),
    ],
)
def test_statements_on_missing_runs_are_inconclusive(words: str, labels: list[str]):
    numbers: dict[Any, Measured] = {label: precise(1.0) for label in labels}
    if words == BELOW and "adam" in labels:
        numbers["adam"] = precise(0.1)
    assert outcome(words, numbers).verdict == "inconclusive"


def test_every_statement_belongs_to_a_figure_in_order():
    figures = [claim.figure for claim in CLAIMS]
    assert figures == sorted(figures, key=list(FIGURES).index)
    texts = [claim.text for claim in CLAIMS]
    assert len({*texts}) == len(texts) == 22
    assert all(text.endswith(".") for text in texts)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text[:30])
def test_without_runs_nothing_is_chosen(claim: Claim):
    assert not claim.runs.choose([])


def test_exponent_agrees_with_the_power_law():
    rng = np.random.default_rng(0)
    z = []
    for _ in range(300):
        gammas = {b: 0.02 * b**0.4 * (1 + 0.05 * rng.normal()) for b in SIZES}
        [found] = exponent(
            {b: Measured(g, 0.05 * g) for b, g in gammas.items()}
        ).values()
        z.append((found.value - 0.4) / found.stderr)
    assert abs(np.mean(z)) < 0.2
    assert 0.7 < np.std(z) < 1.2


def test_deviations_from_the_power_law_increase_the_error_of_the_exponent():
    [on_the_law] = exponent({b: precise(v) for b, v in ROOT.items()}).values()
    [off] = exponent({b: precise(v) for b, v in DIP.items()}).values()
    assert on_the_law == pytest.approx((0.5, on_the_law.stderr))
    assert off.stderr > 20 * on_the_law.stderr


def test_negative_gamma_has_no_exponent():
    found = outcome(SCALES, {16: precise(-1), 32: precise(1)})
    assert found.verdict == "inconclusive"


def seeds_and_settings(
    by_seed: list[float], by_setting: list[float]
) -> dict[Any, Measured]:
    groups = ((SEED, by_seed), (SETTING, by_setting))
    return {
        (kind, i): precise(value)
        for kind, values in groups
        for i, value in enumerate(values)
    }


@pytest.mark.parametrize(
    ("by_seed", "expected"),
    [
        ([1.0, 1.02, 0.98, 1.01, 0.99], "supported"),
        ([1.0, 9.0, 0.5, 6.0, 0.1], "contradicted"),
        ([1.0, 1.7, 0.6, 1.3, 0.9], "inconclusive"),
    ],
)
def test_seeds_agree_where_settings_differ_more(
    by_seed: list[float], expected: Verdict
):
    found = outcome(
        "RSI depends little on the seed", seeds_and_settings(by_seed, [0.5, 1, 2])
    )
    assert found.verdict == expected
    assert "Over 5 seeds" in found.numbers


@pytest.mark.parametrize("by_setting", [[1.0], []])
def test_seeds_without_settings_are_inconclusive(by_setting: list[float]):
    numbers = seeds_and_settings([1.0, 1.1], by_setting)
    found = outcome("gamma depends little on the seed", numbers)
    assert found.verdict == "inconclusive"


def test_only_sgd_decides_the_statement_on_the_random_walk():
    excesses = {"sgd": Measured(0.01, 0.01), "momentum": Measured(-1, 0.01)}
    found = outcome(WALK, dict(excesses))
    assert found.verdict == "inconclusive"
    assert "momentum: -1" in found.numbers
