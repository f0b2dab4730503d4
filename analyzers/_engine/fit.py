"""Regress target - anchor on the basis of each window, layer by layer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.low_rank import regress
from analyzers._engine.blas import one_blas_thread
from analyzers._engine.slices import SEGMENT, segments
from analyzers._engine.walk import WindowVectors, walk
from trajstore.reading.run import Run
from trajstore.reading.target import Target

FloatArray = npt.NDArray[np.floating[Any]]


class Fit(NamedTuple):
    """Inner products of a window's vectors, and coefficients of v on the basis."""

    # The vectors are, in order, the basis, v = target - anchor, and the advance.
    products: FloatArray  # float64 (layer, rank + 2, rank + 2)
    coefficients: FloatArray  # float64 (layer, rank)


def inner_products(
    run: Run, target: Target, windows: range, elements: slice
) -> FloatArray:
    """Return the inner products of each window's vectors over `elements`."""
    # `elements` covers whole blocks. The result is float64 (window, layer, rank + 2,
    # rank + 2).
    pieces = segments(run.layout, elements)
    with one_blas_thread():
        return np.stack(
            [
                window_products(run, vectors, pieces)
                for _, vectors in walk(run, target, windows, elements)
            ]
        )


def window_products(
    run: Run, vectors: WindowVectors, pieces: Sequence[tuple[int, slice]]
) -> FloatArray:
    """Return the inner products of `vectors`, float64 (layer, rank + 2, rank + 2)."""
    n = run.spec.basis + 2
    total = np.zeros((len(run.layout.names), n, n))
    singles = np.empty((n, SEGMENT), np.float32)
    doubles = np.empty((n, SEGMENT), np.float64)
    for layer, part in pieces:
        size = part.stop - part.start
        vectors.write(part, out=singles[:, :size])
        segment = doubles[:, :size]
        segment[:] = singles[:, :size]
        for i, vector in enumerate(segment):
            total[layer, i, : i + 1] += segment[: i + 1] @ vector
    return total + np.tril(total, -1).swapaxes(-1, -2)


def fit(windows: range, parts: Sequence[FloatArray]) -> dict[int, Fit]:
    """Add up the inner products of all parts, and fit every window."""
    products = np.sum(parts, axis=0)
    return {c: fit_window(products[i]) for i, c in enumerate(windows)}


def fit_window(products: FloatArray) -> Fit:
    """Regress target - anchor on the basis of one window."""
    rank = products.shape[-1] - 2
    return Fit(products, regress(products[:, :rank, :rank], products[:, :rank, rank]))
