"""Estimate products of sketched gradients with the residual of target - anchor.

A task covers some steps and some rows of the fold; the results of all rows are added up.
The residual is the part of target - anchor that the basis of the window does not explain.
Nothing here knows Dask: `analyzers._engine.tasks` makes tasks of these functions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.geometry import crowding
from analyzers._engine.blas import one_blas_thread
from analyzers._engine.fit import Fit, fit_window, window_products
from analyzers._engine.slices import SEGMENT, segments, slices
from analyzers._engine.tables import sketch_weights
from analyzers._engine.walk import WindowVectors, walk, window_steps
from trajstore.format.layout import BLOCK
from trajstore.reading.run import Run
from trajstore.reading.target import Target
from trajstore.sketch.sketch import Decoded

FloatArray = npt.NDArray[np.floating[Any]]
Float32Array = npt.NDArray[np.float32]

STEP_BYTES: Final = 128 << 20
"""Decoded sketches that a task holds."""

FOLD_ROWS: Final = 8
"""Rows of the fold whose energies are counted at once."""


class ResidualSums(NamedTuple):
    """Sums over elements of the residual v_perp."""

    energy: FloatArray  # |v_perp / w|^2, float64 (layer,)
    crowd: FloatArray  # what `crowding` returns for it, float64 (layer, layer)
    probes: FloatArray  # of v_perp and of end - anchor, float64 (2, probe)
    layer_probes: FloatArray  # of v_perp by layer, (layer, probe), or (0, probe)


class Projected(NamedTuple):
    """Products of a window's steps with the residual, over some rows of the fold."""

    fit: Fit
    products: FloatArray  # <g, v_perp>, float64 (step, layer), without layers (step, 1)
    sums: ResidualSums


def project(
    run: Run,
    target: Target,
    steps: slice,
    rows: slice,
    fits: Sequence[Mapping[int, Fit]],
    *,
    layers: bool,
) -> dict[int, Projected]:
    """Estimate <g, v_perp> for `steps` over `rows` of the fold, window by window."""
    # Without `fits` the rows must be all rows: fits then follow from the vectors read here.
    fitted = {c: fit for some in fits for c, fit in some.items()}
    by_window = window_steps(run, steps)
    windows = range(min(by_window), max(by_window) + 1)
    width, layout = run.stored.sketch.fold.width, run.layout
    elements = slice(rows.start * width, min(rows.stop * width, layout.size))
    first_block, last_block = elements.start // BLOCK, -(-elements.stop // BLOCK)
    whole_blocks = slice(first_block * BLOCK, last_block * BLOCK)
    inside = slice(
        elements.start - whole_blocks.start, elements.stop - whole_blocks.start
    )
    projected, pieces = {}, segments(layout, whole_blocks)
    # Allocated once: touching new memory costs more than the arithmetic done in it.
    matrix = np.empty((rows.stop - rows.start, width), np.float32)
    buckets = np.empty((_steps_at_once(run, by_window), width), np.float32)
    with one_blas_thread():
        for c, vectors in walk(run, target, windows, whole_blocks):
            if c not in by_window:
                continue
            fit = (
                fitted[c] if fits else fit_window(window_products(run, vectors, pieces))
            )
            sums = write_residual(
                run, c, vectors.cut(inside), rows, fit, layers=layers, out=matrix
            )
            products = [
                contract(run, rows, decode(run, part, buckets), matrix, layers=layers)
                for part in slices(by_window[c], len(buckets))
            ]
            projected[c] = Projected(fit, np.concatenate(products), sums)
    return projected


def _steps_at_once(run: Run, by_window: Mapping[int, slice]) -> int:
    """Choose how many sketches to decode at once: many, in parts of about equal size."""
    most = max(1, STEP_BYTES // (4 * run.spec.sketch_bits))
    longest: int = max(part.stop - part.start for part in by_window.values())
    return -(-longest // -(-longest // most))


def write_residual(
    run: Run,
    window: int,
    vectors: WindowVectors,
    rows: slice,
    fit: Fit,
    *,
    layers: bool,
    out: Float32Array,
) -> ResidualSums:
    """Write v_perp / w times the fold's column signs to `out`, (row, bucket); sum it up."""
    layout, fold = run.layout, run.stored.sketch_of(window).fold
    n = len(vectors.anchor)
    pieces = segments(
        layout, slice(rows.start * fold.width, rows.start * fold.width + n)
    )
    flat = out.reshape(-1)
    flat[n:] = 0
    _subtract_fit(vectors, pieces, fit, out=flat)
    residual_probes = _probe_rows(run, rows, out)
    layer_probes = _probe_layers(run, rows, out, layers=layers)
    inverse = (1 / sketch_weights(run, window)).astype(np.float32)
    for layer, part in pieces:
        flat[part] *= inverse[layer]
    out *= fold.column_signs[rows]
    crowded = [
        crowding(
            np.square(out[i : i + FOLD_ROWS]),
            rows.start + i,
            layout.offsets,
            layout.sizes,
        )
        for i in range(0, len(out), FOLD_ROWS)
    ]
    energy, crowd = (np.sum(parts, axis=0) for parts in zip(*crowded, strict=True))
    probes = np.stack([residual_probes, _probe_end(run, window, vectors, rows)])
    return ResidualSums(energy, crowd, probes, layer_probes)


def _subtract_fit(
    vectors: WindowVectors,
    pieces: Sequence[tuple[int, slice]],
    fit: Fit,
    *,
    out: Float32Array,
) -> None:
    """Write target - anchor less its fit on the basis."""
    rank = fit.coefficients.shape[-1]
    scratch = np.empty((rank + 2, SEGMENT), np.float32)
    for layer, part in pieces:
        segment = scratch[:, : part.stop - part.start]
        vectors.write(part, out=segment)
        v = segment[rank]
        for i, coefficient in enumerate(fit.coefficients[layer]):
            segment[i] *= np.float32(coefficient)
            v -= segment[i]
        out[part] = v


def _probe_rows(run: Run, rows: slice, matrix: Float32Array) -> FloatArray:
    """Return the probes of a vector, given as rows of the fold, (probe,)."""
    probes = run.stored.probes
    folded, signed_row = np.zeros((2, probes.fold.width), np.float32)
    row_signs, column_signs = probes.row_signs[rows], probes.fold.column_signs[rows]
    for row, sign, signs in zip(matrix, row_signs, column_signs, strict=True):
        np.multiply(row, signs, out=signed_row)
        signed_row *= sign
        folded += signed_row
    return probes.of_folded(folded)


def _probe_layers(
    run: Run, rows: slice, matrix: Float32Array, *, layers: bool
) -> FloatArray:
    """Return the probes of each layer, (layer, probe); (0, probe) without layers."""
    probes = run.stored.probes
    result = np.zeros((len(run.layout.names) if layers else 0, probes.count))
    row_signs, column_signs = probes.row_signs[rows], probes.fold.column_signs[rows]
    for layer, parts in _pieces_by_layer(run, rows).items() if layers else ():
        folded = np.zeros(probes.fold.width, np.float32)
        for row, columns in parts:
            signed = matrix[row, columns] * column_signs[row, columns]
            folded[columns] += row_signs[row] * signed
        result[layer] = probes.of_folded(folded)
    return result


def _probe_end(
    run: Run, window: int, vectors: WindowVectors, rows: slice
) -> Float32Array:
    """Return the probes of end - anchor, or 0 where the store has both ends' probes."""
    probes = run.stored.probes
    folded = np.zeros(probes.fold.width, np.float32)
    if window == run.n_windows - 1:
        displacement = vectors.end - vectors.anchor
        displacement[~np.isfinite(displacement)] = 0
        signed = probes.fold.signed_rows(displacement, rows.start)
        folded = probes.row_signs[rows] @ signed
    return probes.of_folded(folded)


def decode(run: Run, steps: slice, buffer: Float32Array) -> Decoded:
    """Decode the sketches of some steps into a buffer that has a row for each of them."""
    signs, scales = run.stored.rows("signs", steps), run.stored.rows("scales", steps)
    # Lost signs read as zeros, which are valid signs; NaN scales mark these steps.
    lost = run.stored.is_missing("signs", steps)
    scales = np.where(lost[:, None], np.float32(np.nan), scales)
    numbers = run.stored.sign_numbers[steps]
    return run.stored.sketch.decode(signs, scales, numbers, out=buffer[: len(numbers)])


def contract(
    run: Run, rows: slice, decoded: Decoded, residual: Float32Array, *, layers: bool
) -> FloatArray:
    """Estimate <g, v_perp> over some rows of the fold, float64 (step, layer or 1)."""
    row_signs = decoded.row_signs[:, rows]
    if not layers:
        products = decoded.buckets @ residual.T
        sums: FloatArray = (products * row_signs).sum(1, dtype=np.float64)
        return sums[:, None]
    total = np.zeros((len(decoded.buckets), len(run.layout.names)))
    whole_row = slice(0, run.stored.sketch.fold.width)
    for layer, pieces in _pieces_by_layer(run, rows).items():
        whole = [row for row, columns in pieces if columns == whole_row]
        if whole:
            products = decoded.buckets @ residual[whole].T
            total[:, layer] += (products * row_signs[:, whole]).sum(1)
        for row, columns in pieces:
            if row not in whole:
                part = decoded.buckets[:, columns] @ residual[row, columns]
                total[:, layer] += part * row_signs[:, row]
    return total


def _pieces_by_layer(run: Run, rows: slice) -> dict[int, list[tuple[int, slice]]]:
    """Cut rows of the fold at layer borders; return (row, columns) by layer."""
    layout, width = run.layout, run.stored.sketch.fold.width
    first, last = rows.start * width, rows.stop * width
    pieces: dict[int, list[tuple[int, slice]]] = {}
    for layer, (offset, size) in enumerate(
        zip(layout.offsets, layout.sizes, strict=True)
    ):
        start, stop = max(int(offset), first), min(int(offset + size), last)
        while start < stop:
            row, column = divmod(start - first, width)
            end = min(stop - start + column, width)
            pieces.setdefault(layer, []).append((row, slice(column, end)))
            start += end - column
    return pieces
