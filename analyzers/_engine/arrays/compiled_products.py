"""Inner products of a window's vectors in a compiled loop, for analyses of many large windows.

The results equal those of `analyzers._engine.vectors.fit.add_products` up to rounding in float64. Numba
compiles the loop when this module is first imported, and keeps it on disk.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
from numba import float32, float64, int64, void

from trajstore.sketch.compiling import FASTMATH, compiled

Floats = npt.NDArray[np.float32]

# Sums may be reordered: their errors are those of float64.
_REORDERED: Final = FASTMATH | {"reassoc"}

_CACHED: Final = 1024
"""Number of elements of every vector that are multiplied in turn; they fit into the first cache."""


@compiled(float64(float32[::1], float32[::1]), fastmath=_REORDERED, inline="never")
def _product(a: Floats, b: Floats) -> float:
    total = 0.0
    for i in range(len(a)):
        total += np.float64(a[i]) * np.float64(b[i])
    return total


@compiled(void(float32[:, ::1], int64, int64, float64[:, ::1]))
def add_products(
    vectors: Floats,  # (vector, element)
    start: int,
    stop: int,
    total: npt.NDArray[np.float64],  # (vector, vector)
) -> None:
    """Add the products of vectors over a range of elements to the lower triangle of `total`."""
    for first in range(start, stop, _CACHED):
        last = min(first + _CACHED, stop)
        for i in range(len(vectors)):
            a = vectors[i, first:last]
            for j in range(i + 1):
                total[i, j] += _product(a, vectors[j, first:last])
