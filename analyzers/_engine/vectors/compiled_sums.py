"""Residuals and their sums in compiled loops, for analyses of many large windows.

Every function equals its namesake in `project` or `energies` up to rounding, for vectors of float32
and sketches that are not packed. Importing this module imports Numba, which takes a third of a second.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays import compiled_residual
from analyzers._engine.arrays.crowding import bucket_borders
from analyzers._engine.slices import segments
from analyzers._engine.vectors.energies import (
    DisplacementWeights,
    EnergySums,
    Piece,
    Spread,
    joined_sums,
    no_product,
    uneven_weights,
    window_total,
)
from analyzers._engine.vectors.fit import Fit
from analyzers._engine.vectors.walk import WindowVectors
from trajstore.format.layout import BLOCK
from trajstore.reading.run import Run
from trajstore.sketch.sketch import FOLD_VARIANCE

FloatArray = npt.NDArray[np.floating[Any]]
Float32Array = npt.NDArray[np.float32]


def subtract_fit(
    run: Run,
    vectors: WindowVectors,
    rows: slice,
    part: slice,
    fit: Fit,
    *,
    out: Float32Array,
) -> None:
    """Write to `out` the residual in `rows`: target - anchor minus its fit on the basis."""
    width = out.shape[-1]
    elements = slice(part.start * width, part.stop * width)
    anchor, target = vectors.anchor[elements], vectors.target[elements]
    moves = [move[elements] for move in vectors.moves]
    flat = out.reshape(-1)
    flat[len(anchor) :] = 0
    by_move = _coefficients_of_moves(fit.coefficients, len(moves))
    first = rows.start * width
    for layer, own in segments(run.layout, slice(first, first + len(anchor))):
        residual, of_anchor = flat[own], 0.0
        if fit.coefficients.shape[1]:
            of_anchor = fit.coefficients[layer, 0]
        compiled_residual.write_rest(target[own], anchor[own], of_anchor, residual)
        for move, coefficients in zip(moves, by_move, strict=True):
            if coefficients[layer]:
                compiled_residual.subtract(move[own], coefficients[layer], residual)


def _coefficients_of_moves(coefficients: FloatArray, n_moves: int) -> FloatArray:
    """Return the coefficients of single moves, given those of the basis, (move, layer)."""
    # A displacement is the sum of all moves since an anchor, see `WindowVectors.write_known`.
    by_move = np.zeros((n_moves, len(coefficients)))
    for j in range(coefficients.shape[1] - 1):
        by_move[: 1 << j] += coefficients[:, 1 + j]
    return by_move


def displacement_products(
    run: Run,
    known: DisplacementWeights,
    rows: slice,
    matrix: Float32Array,  # a vector in `rows` of the fold, (row, bucket)
    part: slice,  # rows of `matrix` to use
    pieces: Sequence[Piece],  # `layer_pieces` of these rows
) -> FloatArray:
    """Return products of a part of a vector with the sum of displacements, and their variances."""
    del part
    probes, width = run.stored.probes, matrix.shape[1]
    result = no_product(run, is_known=True)
    for layer, i, columns in pieces:
        row = rows.start + i
        compiled_residual.add_displacement_sums(
            matrix[i, columns],
            probes.fold.column_signs[row, columns],
            known.total[columns],
            known.by_bucket[columns],
            known.folded[i * width + columns.start : i * width + columns.stop],
            known.share,
            FOLD_VARIANCE,
            known.coded,
            probes.row_signs[row],
            result,
            layer,
        )
    return result


def energy_sums(
    run: Run,
    window: int,
    found: Spread | None,
    rows: slice,
    matrix: Float32Array,
    pieces: Sequence[Piece],
    inverse: Float32Array,  # factor of every layer, (layer,)
) -> EnergySums:
    """Weigh a vector that is `matrix` in `rows` of the fold, (row, bucket), and return its sums."""
    layout, fold = run.layout, run.stored.sketch_of(window).fold
    uneven = None if found is None else uneven_weights(run, found)
    total = None if found is None else window_total(run, window, found)
    n_layers, borders = (
        len(layout.sizes),
        bucket_borders(run.stored.folded_offsets, layout.sizes, fold.width),
    )
    sums = np.zeros((len(matrix), len(borders)))
    by_block, extra = np.zeros(len(layout.layer_of_block)), np.zeros(n_layers)
    window_sum = np.full((2, n_layers), np.nan if total is None else 0.0)
    nothing = np.zeros(fold.width, np.float32)
    for layer, i, columns in pieces:
        row, own = rows.start + i, np.zeros(3)
        weights = folded = of_total = nothing[columns]
        if uneven is not None:
            weights = uneven.of_buckets(row, columns)
        if total is not None:
            folded = total.folds[row % len(total.folds), columns]
            of_total = total.weights.of_buckets(row, columns)
        compiled_residual.add_energy_sums(
            matrix[i, columns],
            fold.column_signs[row, columns],
            inverse[layer],
            weights,
            folded,
            of_total,
            columns.start,
            row * fold.width + columns.start,
            BLOCK,
            borders,
            by_block,
            sums[i],
            own,
        )
        extra[layer] += own[0]
        if total is not None:
            window_sum[:, layer] += total.row_signs[row] * own[1], own[2]
    return joined_sums(run, rows, sums, by_block, extra, window_sum, uneven, total)
