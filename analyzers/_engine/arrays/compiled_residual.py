"""Sums over the elements of a residual in compiled loops, for analyses of many large windows.

The results equal those of the NumPy code in `analyzers._engine.vectors` up to rounding. Numba
compiles the loops when this module is first imported, and keeps them on disk.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
from numba import float32, float64, int64, types, void

from trajstore.sketch.compiling import FASTMATH, compiled

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# Sums may be reordered: a few hundred numbers are added in float32, and these sums in float64.
_REORDERED: Final = FASTMATH | {"reassoc"}

_SHORT: Final = 1024
"""Largest number of elements that are added in float32."""

_WRITTEN: Final = float32[::1]
_READ: Final = types.Array(float32, 1, "C", readonly=True)
_DOUBLES: Final = float64[::1]


@compiled(void(_READ, _READ, float32, _WRITTEN))
def write_rest(target: Floats, anchor: Floats, coefficient: float, out: Floats) -> None:
    """Write target - anchor without a multiple of the anchor."""
    for i in range(len(out)):
        out[i] = (target[i] - anchor[i]) - coefficient * anchor[i]


@compiled(void(_READ, float32, _WRITTEN))
def subtract(vector: Floats, coefficient: float, out: Floats) -> None:
    """Subtract a multiple of a vector."""
    for i in range(len(out)):
        out[i] -= coefficient * vector[i]


@compiled(fastmath=_REORDERED, inline="never")
def _displacement_sums(
    values: Floats,
    signs: Floats,
    total: Floats,
    by_bucket: Floats,
    advance: Floats,
    share: float,
    folded: float,
    coded: float,
) -> tuple[float, float]:
    product, variance = np.float32(0), np.float32(0)
    for i in range(len(values)):
        own = share * (advance[i] * advance[i])
        weight = folded * max(by_bucket[i] - own, np.float32(0)) + coded
        product += values[i] * (signs[i] * total[i])
        variance += values[i] * values[i] * weight
    return product, variance


@compiled(
    void(
        _READ,
        _READ,
        _READ,
        _READ,
        _READ,
        float32,
        float32,
        float32,
        float64,
        float64[:, ::1],
        int64,
    )
)
def add_displacement_sums(
    values: Floats,  # the vector in a few buckets of one row, (bucket,)
    signs: Floats,  # column signs, (bucket,)
    total: Floats,  # fold of the displacements, (bucket,)
    by_bucket: Floats,  # energies of the displacement at the window's end, (bucket,)
    advance: Floats,  # that displacement, (bucket,)
    share: float,
    folded: float,
    coded: float,
    row_sign: float,
    out: Doubles,  # (2, layer)
    layer: int,
) -> None:
    """Add a product with the sum of the displacements, and its variance, to those of a layer."""
    for first in range(0, len(values), _SHORT):
        last = min(first + _SHORT, len(values))
        product, variance = _displacement_sums(
            values[first:last],
            signs[first:last],
            total[first:last],
            by_bucket[first:last],
            advance[first:last],
            share,
            folded,
            coded,
        )
        out[0, layer] += row_sign * product
        out[1, layer] += variance


@compiled(fastmath=_REORDERED, inline="never")
def _energy_sums(
    values: Floats,
    signs: Floats,
    factor: float,
    uneven: Floats,
    fold: Floats,
    weights: Floats,
) -> tuple[float, float, float, float]:
    energy, extra = np.float32(0), np.float32(0)
    product, variance = np.float32(0), np.float32(0)
    for i in range(len(values)):
        value = values[i] * factor * signs[i]
        square = value * value
        values[i] = value
        energy += square
        extra += square * uneven[i]
        product += value * fold[i]
        variance += square * weights[i]
    return energy, extra, product, variance


@compiled(
    void(
        _WRITTEN,
        _READ,
        float32,
        _READ,
        _READ,
        _READ,
        int64,
        int64,
        int64,
        types.Array(int64, 1, "C", readonly=True),
        _DOUBLES,
        _DOUBLES,
        _DOUBLES,
    )
)
def add_energy_sums(
    values: Floats,  # the vector in a few buckets of one row, (bucket,): weighed and signed
    signs: Floats,  # column signs, (bucket,)
    factor: float,
    uneven: Floats,  # weights of squares, (bucket,)
    fold: Floats,  # of the sum of the window's gradients, (bucket,)
    weights: Floats,  # of the variance of the product with it, (bucket,)
    column: int,  # the first bucket
    element: int,  # the first element of the flat vector
    block: int,  # elements of a block
    borders: Integers,  # first buckets of intervals, (interval,)
    by_block: Doubles,  # energies of blocks, (block,)
    by_interval: Doubles,  # energies in the row's intervals, (interval,)
    sums: Doubles,  # squares with `uneven`, the product, and its variance, (3,)
) -> None:
    """Weigh a part of a row, and add its energies and products."""
    interval = np.searchsorted(borders, column, side="right") - 1
    first = 0
    while first < len(values):
        here = element + first
        last = min(len(values), first + block - here % block)
        if interval + 1 < len(borders):
            last = min(last, borders[interval + 1] - column)
        energy, extra, product, variance = _energy_sums(
            values[first:last],
            signs[first:last],
            factor,
            uneven[first:last],
            fold[first:last],
            weights[first:last],
        )
        by_block[here // block] += energy
        by_interval[interval] += energy
        sums[0] += extra
        sums[1] += product
        sums[2] += variance
        first = last
        if interval + 1 < len(borders) and column + first == borders[interval + 1]:
            interval += 1
