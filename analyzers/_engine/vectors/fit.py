"""Regress target - anchor on the basis of each window, layer by layer."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.low_rank import regress
from analyzers._engine.blas import one_blas_thread
from analyzers._engine.slices import SEGMENT, joined, segments
from analyzers._engine.vectors.walk import WindowVectors, walk
from trajstore.reading.run import Run
from trajstore.reading.target import Target

FloatArray = npt.NDArray[np.floating[Any]]


COMPILED_FROM: Final = 1 << 28
"""Elements of all windows from which on a compiled loop is worth its import."""

FINE_BITS: Final = 8
"""Bits per number of sketches whose products are nearly as precise as those of float32."""

CANCELLING: Final = 16
"""A displacement from a past anchor is not used where it is this many times shorter than a step of
the path to it: float32 then lacks more than one of its digits."""


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
    vectors_of_segment = np.empty((n, SEGMENT), vector_dtype(run))
    add = add_products
    if run.n_windows * run.layout.size >= COMPILED_FROM:
        # Numba takes a third of a second to import.
        vectors_of_segment = vectors_of_segment.astype(np.float32)
        add = import_module("analyzers._engine.arrays.compiled_products").add_products
    for whole, numbers in joined([part for _, part in pieces]):
        vectors.write(whole, out=vectors_of_segment[:, : whole.stop - whole.start])
        for layer, part in pieces[numbers]:
            start, stop = part.start - whole.start, part.stop - whole.start
            add(vectors_of_segment, start, stop, total[layer])
    return total + np.tril(total, -1).swapaxes(-1, -2)


def vector_dtype(run: Run) -> npt.DTypeLike:
    """Return the type of vectors that are multiplied with each other and with sketches."""
    # Rounding in float32 is the same in all steps of a window, and grows where vectors of the basis
    # nearly cancel. The errors of other sketches are far larger.
    is_fine = run.spec.bits_per_number >= FINE_BITS or run.spec.float64
    return np.float64 if run.spec.is_packed and is_fine else np.float32


def add_products(vectors: FloatArray, start: int, stop: int, total: FloatArray) -> None:
    """Add products of vectors, (vector, element), to the lower triangle of `total`."""
    doubles = vectors[:, start:stop].astype(np.float64)
    for i, vector in enumerate(doubles):
        total[i, : i + 1] += doubles[: i + 1] @ vector


def fit(
    windows: range, steps_sq: FloatArray, parts: Sequence[FloatArray]
) -> dict[int, Fit]:
    """Add up the inner products of all parts, and fit every window."""
    products = np.sum(parts, axis=0)
    return {c: fit_window(products[i], steps_sq[i]) for i, c in enumerate(windows)}


def fit_window(products: FloatArray, steps_sq: FloatArray) -> Fit:
    """Regress target - anchor on the basis of one window, given its row of `longest_steps`."""
    # The recorder adds up displacements from past anchors step by step. Where much longer steps
    # cancel, as after a blow-up that was taken back, rounding leaves different vectors here and
    # there, so their products become 0. Estimates are unbiased for any basis.
    rank = products.shape[-1] - 2
    squares = np.diagonal(products, axis1=-2, axis2=-1)[:, 1:rank]
    layers, unusable = np.nonzero(CANCELLING**2 * squares < steps_sq)
    if len(layers):
        products = products.copy()
        products[layers, 1 + unusable] = products[layers, :, 1 + unusable] = 0
    return Fit(products, regress(products[:, :rank, :rank], products[:, :rank, rank]))


def longest_steps(run: Run, windows: range) -> FloatArray:
    """Return |d|^2 of the longest steps in past displacements, (window, layer, displacement)."""
    # Displacements from the anchors 1, 2, 4, ... windows earlier consist of that many steps d from
    # anchor to anchor. NaN in the store says nothing against a displacement.
    rank, n_layers = run.spec.basis, len(run.layout.names)
    longest = np.zeros((len(windows), n_layers, max(0, rank - 1)))
    if rank < 2:
        return longest
    first = max(0, windows.start - (1 << (rank - 2)))
    arrival = run.stored.rows("references/arrival", slice(first, windows.stop))
    squares = np.nan_to_num(arrival[:, :, 0].astype(np.float64), nan=0.0)
    for i, c in enumerate(windows):
        for j in range(rank - 1):
            steps = range(max(1, c + 1 - (1 << j)), c + 1)
            for step in steps:
                longest[i, :, j] = np.maximum(longest[i, :, j], squares[step - first])
    return longest
