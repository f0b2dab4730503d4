"""Test ``rate_or_nan`` of ``trajstore.recording.logged``."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trajstore.recording.logged import rate_or_nan

NO_NUMBERS = [None, "0.1", 1j, (0.1, 0.2), torch.ones(2), object(), 10**400, np.ones(2)]
NUMBERS = [Decimal(1), Fraction(1), np.array(1.0), np.ones(1), torch.tensor(1.0), 1]


@pytest.mark.parametrize("rate", NO_NUMBERS, ids=range(len(NO_NUMBERS)))
def test_a_rate_that_is_no_number_is_nan(rate: object):
    assert math.isnan(float(rate_or_nan(rate)))


@pytest.mark.parametrize("rate", NUMBERS, ids=range(len(NUMBERS)))
def test_every_kind_of_number_is_a_rate(rate: object):
    assert float(rate_or_nan(rate)) == 1
