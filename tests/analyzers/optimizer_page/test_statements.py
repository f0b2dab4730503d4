"""Verdicts on optimizers follow from numbers and errors."""

import pytest

from analyzers.no_wrong_turns.claims.verdict import UNKNOWN, Measured
from analyzers.optimizer_page.measure import NO_PAIR, QUANTITIES, over_seeds
from analyzers.optimizer_page.statements import STATEMENTS, findings


def numbers(**of_quantities: dict[str, Measured]) -> dict[str, dict[str, Measured]]:
    unknown = {"sgd": UNKNOWN, "adam": UNKNOWN}
    return {name: of_quantities.get(name, unknown) for name in QUANTITIES}


def verdicts(**of_quantities: dict[str, Measured]) -> dict[str, str]:
    found = findings(numbers(**of_quantities))
    return {f.statement.text: f.verdict for f in found}


def test_means_over_seeds_take_the_larger_error():
    spread = over_seeds([Measured(1, 0.01), Measured(2, 0.01), Measured(3, 0.01)])
    assert spread == pytest.approx((2, 3**-0.5))
    own = over_seeds([Measured(1, 0.3), Measured(1.01, 0.3)])
    assert own == pytest.approx((1.005, 0.3 / 2**0.5))
    assert over_seeds([Measured(1, 0.3)]) == (1, 0.3)
    assert over_seeds([Measured(1, 0.3), NO_PAIR]) is NO_PAIR


@pytest.mark.parametrize(
    ("sgd", "adam", "verdict"),
    [(0.3, 0.1, "supported"), (0.1, 0.3, "contradicted"), (0.2, 0.19, "inconclusive")],
)
def test_gamma_of_sgd_against_adam(sgd: float, adam: float, verdict: str):
    gamma = {"sgd": Measured(sgd, 0.02), "adam": Measured(adam, 0.02)}
    assert verdicts(gamma=gamma)["Gamma of SGD exceeds that of Adam."] == verdict


def test_pairs_have_to_fall_at_every_step():
    text = "The smallest workable alpha + beta falls from SGD over momentum to Adam."
    values = {"sgd": 3.0, "momentum": 2.0, "adam": 1.0}
    pair = {name: Measured(value, 0.1) for name, value in values.items()}
    assert verdicts(pair=pair)[text] == "supported"
    pair["momentum"] = Measured(0.5, 0.1)
    assert verdicts(pair=pair)[text] == "contradicted"
    del pair["momentum"]
    assert verdicts(pair=pair)[text] == "inconclusive"


def test_unknown_numbers_decide_nothing():
    found = findings(numbers())
    assert len(found) == len(STATEMENTS)
    assert {f.verdict for f in found} == {"inconclusive"}
    sharpness = {"sgd": Measured(0.2, 0.01), "lion": UNKNOWN}
    text = "With minibatches, sharpness stays below the threshold of full-batch steps."
    assert verdicts(sharpness=sharpness)[text] == "supported"
