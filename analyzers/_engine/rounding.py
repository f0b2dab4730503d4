"""Rounding errors of the parameters in float32, which updates leave behind.

The parameters after a step are the rounded sum of parameters and update. If updates change by more
than the spacing of numbers from step to step, their rounding errors are independent and add up like
a random walk. If they change by less, as in descent on all data at a small rate, the errors repeat,
and add up like the number of steps. An update below half a spacing is lost as a whole.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.recurrence import Rule
from analyzers._engine.measured_window import Measured
from analyzers._engine.rules import Parts

FloatArray = npt.NDArray[np.floating[Any]]

ROUNDING_SQ: Final = 2.0**-46 / 28
"""Mean square of rounding errors relative to that of numbers, which are taken to be even within
octaves: the spacing s of numbers from 2^k to 2^(k+1) is 2^(k-23), the mean square of the errors is
s^2 / 12, and that of the numbers is 7/3 4^k."""

HARMONICS: Final = np.arange(1, 65)
"""Terms of the Fourier series of the rounding error, whose amplitudes fall like their inverse."""


class Rounding(NamedTuple):
    """Variance of the product of v' with rounding errors: ``k random + k^2 repeated`` after k steps."""

    random: FloatArray  # (part,)
    repeated: FloatArray  # (part,)

    def variance(self, k: FloatArray | float) -> FloatArray:
        """Return the variance of the product after k steps, (..., part)."""
        result: FloatArray = k * self.random + np.square(k) * self.repeated
        return result

    def covariance(self, k: FloatArray, n: int) -> FloatArray:
        """Return the covariance of the products after k and after n >= k steps, (..., part)."""
        result: FloatArray = k * self.random + k * n * self.repeated
        return result


def rounding_of(measured: Measured, rule: Rule, parts: Parts) -> Rounding:
    """Return the rounding of the updates of a window, whose rule is given by layer."""
    tables, n = measured.tables, len(measured.products.value)
    grad_sq, before = tables["grad_sq"], tables["grad_dot_previous"]
    squares = ROUNDING_SQ * tables["param_sq"].mean(0)
    share = np.zeros_like(squares)
    if n > 1:
        change_sq = np.maximum(grad_sq[1:] + grad_sq[:-1] - 2 * before[1:], 0)
        change_sq = (rule.pull[1:] ** 2 * change_sq).mean(0)
        share = repetition(change_sq, 12 * squares)
    random, repeated = (1 - share) * squares, share * squares
    # Errors that repeat in all windows are a part of the path, and point along it by their
    # share of it. Other errors point in random directions.
    path_sq = measured.displacement_sq[-1]
    of_path = np.divide(
        n**2 * repeated, path_sq, out=np.ones_like(path_sq), where=path_sq > 0
    )
    random_cosine = 1 / np.maximum(parts.sizes, 1)
    repeated = repeated * np.minimum(random_cosine + of_path, 1)
    return Rounding(
        parts.sum(random * random_cosine * measured.residual_sq, 0),
        parts.sum(repeated * measured.residual_sq, 0),
    )


def repetition(change_sq: FloatArray, spacing_sq: FloatArray) -> FloatArray:
    """Return the correlation of rounding errors of updates that change by Gaussian amounts."""
    # The rounding error is a sawtooth of the update, whose m-th harmonic has the energy 1/m^2.
    ratio = np.divide(
        change_sq, spacing_sq, out=np.zeros_like(change_sq), where=spacing_sq > 0
    )
    energy = 1 / HARMONICS**2
    exponents = -2 * np.pi**2 * HARMONICS**2 * ratio[..., None]
    result: FloatArray = (np.exp(exponents) @ energy) / energy.sum()
    return result
