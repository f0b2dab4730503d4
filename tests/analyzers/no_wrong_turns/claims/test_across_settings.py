"""Test ``analyzers.no_wrong_turns.claims.across_settings``: statements with a known answer."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from analyzers.no_wrong_turns.claims import across_settings as claims
from analyzers.no_wrong_turns.claims.verdict import Finding, Measured, Seen


def sure(value: float) -> Measured:
    return Measured(value, 0.001 * abs(value))


def vague(value: float) -> Measured:
    return Measured(value, abs(value))


SIZES = (16, 32, 64, 128)
ROOT = {size: 0.01 * size**0.5 for size in SIZES}
LINE = {size: 0.01 * size for size in SIZES}
FLAT = dict.fromkeys(SIZES, 0.01)
DIP = {16: 0.05, 32: 0.04, 64: 0.06, 128: 0.1}
DOWN = {size: 1 / size for size in SIZES}

CASES: list[tuple[Callable[[Any], Finding], dict[Any, float], Seen]] = [
    (claims.grows_with_batch_size, ROOT, "seen"),
    (claims.grows_with_batch_size, DIP, "not seen"),
    (claims.grows_with_batch_size, DOWN, "not seen"),
    (claims.grows_with_batch_size, FLAT, "not decided"),
    (claims.scales_with_root_of_batch_size, ROOT, "seen"),
    (claims.scales_with_root_of_batch_size, LINE, "not seen"),
    (claims.scales_with_root_of_batch_size, FLAT, "not seen"),
    (claims.adam_is_below, {"sgd": 3, "momentum": 2, "adam": 1}, "seen"),
    (claims.adam_is_below, {"sgd": 3, "momentum": 1, "adam": 2}, "not seen"),
    (claims.momentum_matters_little, {"sgd": 1.0, "momentum": 1.2}, "seen"),
    (claims.momentum_matters_little, {"sgd": 1.0, "momentum": 0.8}, "seen"),
    (claims.momentum_matters_little, {"sgd": 1.0, "momentum": 1.3}, "not seen"),
    (claims.momentum_matters_little, {"sgd": 1.0, "momentum": 0.4}, "not seen"),
    (claims.adam_varies_less, {"sgd": 3, "momentum": 2, "adam": 1}, "seen"),
    (claims.adam_varies_less, {"sgd": 3, "momentum": 1, "adam": 2}, "not seen"),
    (claims.adam_travels_further, {"sgd": 1, "momentum": 2, "adam": 3}, "seen"),
    (claims.adam_travels_further, {"sgd": 1, "momentum": 3, "adam": 2}, "not seen"),
    (claims.mlp_is_more_regular, {"mlp": 1, "resnet": 2}, "seen"),
    (claims.mlp_is_more_regular, {"mlp": 2, "resnet": 1}, "not seen"),
    (claims.depth_raises_gamma, {"18": 1, "50": 2, "152": 3}, "seen"),
    (claims.depth_raises_gamma, {"18": 3, "50": 2, "152": 1}, "not seen"),
]


@pytest.mark.parametrize(("claim", "values", "expected"), CASES)
def test_statement_is_seen_where_it_holds(
    claim: Callable[[Any], Finding], values: dict[Any, float], expected: Seen
):
    found = claim({name: sure(value) for name, value in values.items()})
    assert found.seen == expected
    assert found.numbers.endswith(".")
    assert found.claim.endswith(".")


@pytest.mark.parametrize(("claim", "values", "expected"), CASES)
def test_statement_is_not_decided_by_vague_numbers(
    claim: Callable[[Any], Finding], values: dict[Any, float], expected: Seen
):
    found = claim({name: vague(value) for name, value in values.items()})
    assert found.seen == "not decided"


ALL = sorted({claim for claim, _, _ in CASES}, key=lambda claim: claim.__name__)


@pytest.mark.parametrize("claim", ALL)
def test_statement_without_runs_is_not_decided(claim: Callable[[Any], Finding]):
    assert claim({}).seen == "not decided"


def test_exponent_is_that_of_the_law():
    rng = np.random.default_rng(0)
    z = []
    for _ in range(300):
        gammas = {b: 0.02 * b**0.4 * (1 + 0.05 * rng.normal()) for b in SIZES}
        found = claims._exponent({b: Measured(g, 0.05 * g) for b, g in gammas.items()})
        z.append((found.value - 0.4) / found.stderr)
    assert abs(np.mean(z)) < 0.2
    assert 0.7 < np.std(z) < 1.2


def test_exponent_of_numbers_off_the_law_is_less_sure():
    on_the_law = claims._exponent({b: sure(v) for b, v in ROOT.items()})
    off = claims._exponent({b: sure(v) for b, v in DIP.items()})
    assert on_the_law == pytest.approx((0.5, on_the_law.stderr))
    assert off.stderr > 20 * on_the_law.stderr


def test_negative_gamma_has_no_exponent():
    found = claims.scales_with_root_of_batch_size({16: sure(-1), 32: sure(1)})
    assert found.seen == "not decided"


@pytest.mark.parametrize(
    ("by_seed", "expected"),
    [
        ([1.0, 1.02, 0.98, 1.01, 0.99], "seen"),
        ([1.0, 9.0, 0.5, 6.0, 0.1], "not seen"),
        ([1.0, 1.7, 0.6, 1.3, 0.9], "not decided"),
    ],
)
def test_seeds_agree_where_settings_differ_more(by_seed: list[float], expected: Seen):
    settings = [sure(value) for value in (0.5, 1.0, 2.0)]
    found = claims.seeds_agree(
        [sure(v) for v in by_seed], settings, quantity="rsi", figure="10"
    )
    assert (found.seen, found.figure) == (expected, "10")
    assert found.claim.startswith("RSI")
    assert "Over 5 seeds" in found.numbers


def test_seeds_are_not_decided_without_settings():
    seeds = [sure(1.0), sure(1.1)]
    for by_setting in ([], [sure(1.0)]):
        found = claims.seeds_agree(seeds, by_setting, quantity="gamma", figure="4")
        assert found.seen == "not decided"
    found = claims.seeds_agree([], [], quantity="gamma", figure="4")
    assert found.seen == "not decided"


@pytest.mark.parametrize(
    ("by_budget", "expected"),
    [
        ({100: 1.1, 190: 0.9, 280: 1.0}, "seen"),
        ({100: 1.5, 190: 0.9, 280: 1.0}, "not seen"),
        ({100: 0.7, 190: 1.0, 280: 1.0}, "not seen"),
        ({}, "not decided"),
    ],
)
def test_budgets_agree_with_the_longest(by_budget: dict[int, float], expected: Seen):
    numbers = {budget: sure(value) for budget, value in by_budget.items()}
    found = claims.budgets_agree(numbers, quantity="gamma", figure="4")
    assert found.seen == expected


@pytest.mark.parametrize(
    ("narrow", "wide", "expected"), [(1.0, 1.1, "seen"), (1.0, 0.5, "not seen")]
)
def test_width_matters_where_a_pair_differs(narrow: float, wide: float, expected: Seen):
    pairs = {"a-2": (sure(1.0), sure(1.0)), "b-2": (sure(narrow), sure(wide))}
    assert claims.width_matters_little(pairs).seen == expected
    assert claims.width_matters_little({}).seen == "not decided"
