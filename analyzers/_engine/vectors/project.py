"""Estimate products of sketched gradients with the residual of target - anchor.

The residual is the part of target - anchor that the basis of the window does not explain.
One call of `project` covers a range of steps and a range of rows of the fold; `combine`
adds up the results of all rows. `tasks` turns these calls into Dask tasks.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.collisions import (
    Collisions,
    find_collisions,
    no_collisions,
)
from analyzers._engine.arrays.crowding import bucket_densities, layer_pieces
from analyzers._engine.blas import one_blas_thread
from analyzers._engine.rules import Parts
from analyzers._engine.slices import SEGMENT, joined, segments, slices
from analyzers._engine.tables import sketch_weights
from analyzers._engine.vectors.energies import (
    Piece,
    by_rows,
    cached_rows,
    displacement_products,
    displacement_weights,
    energy_sums,
    gradient_energies,
    no_product,
    spread,
)
from analyzers._engine.vectors.fit import (
    COMPILED_FROM,
    Fit,
    fit_window,
    longest_steps,
    vector_dtype,
    window_products,
)
from analyzers._engine.vectors.walk import WindowVectors, walk, window_steps
from trajstore.format.layout import BLOCK, Layout
from trajstore.reading.run import Run
from trajstore.reading.target import Target
from trajstore.sketch.sketch import Decoded

FloatArray = npt.NDArray[np.floating[Any]]
Float32Array = npt.NDArray[np.float32]

STEP_BYTES: Final = 64 << 20
"""Bytes of decoded sketches that a task holds in the type of the residual."""


class ResidualSums(NamedTuple):
    """Sums over the elements of the residual v_perp."""

    # w are the weights of the sketch.
    energy: FloatArray  # |v_perp / w|^2, float64 (layer,)
    crowd: FloatArray  # see `sketch_variance`, float64 (step, layer)
    probes: FloatArray  # probes of v_perp and of the advance, float64 (2, probe)
    # Probes of v_perp, float32 (part, probe); empty for a single part.
    part_probes: FloatArray
    # Product of v_perp with the sum of the window's gradients, and its variance, float64
    # (2, layer); NaN if the sum is not stored.
    window_sum: FloatArray
    # The same with the sum of the window's displacements.
    displacement_sum: FloatArray
    # Fields of `Collisions`; empty unless the sketch is packed.
    probe_energies: FloatArray
    crossed: FloatArray


class Pieces(NamedTuple):
    """Pieces of rows of the fold in which no layer begins or ends; rows are counted from 0."""

    by_layer: list[tuple[int, int, slice]]  # (layer, row, columns), in order
    by_part: dict[int, list[tuple[int, slice]]]  # (row, columns) by part


class Projected(NamedTuple):
    """Products of a window's gradients with the residual, over a range of fold rows."""

    fit: Fit
    products: FloatArray  # <g, v_perp>, float64 (step, part)
    sums: ResidualSums


def project(
    run: Run,
    target: Target,
    steps: slice,
    rows: slice,
    fits: Sequence[Mapping[int, Fit]],
    *,
    parts: Parts,
) -> dict[int, Projected]:
    """Estimate <g, v_perp> for `steps` over `rows` of the fold, window by window."""
    # If `fits` is empty, `rows` must be all rows: the windows are then fitted here, from
    # the vectors that the walk yields anyway.
    fitted = {c: fit for by_keyframe in fits for c, fit in by_keyframe.items()}
    by_window = window_steps(run, steps)
    windows = range(min(by_window), max(by_window) + 1)
    width, layout = run.stored.sketch.fold.width, run.layout
    elements = slice(rows.start * width, min(rows.stop * width, layout.size))
    if run.spec.is_packed:
        # There is one row, and gaps lie between its elements.
        elements = slice(0, layout.size)
    first_block, last_block = elements.start // BLOCK, -(-elements.stop // BLOCK)
    whole_blocks = slice(first_block * BLOCK, last_block * BLOCK)
    inside = slice(
        elements.start - whole_blocks.start, elements.stop - whole_blocks.start
    )
    projected, whole = {}, segments(layout, whole_blocks)
    pieces = _cut_at_layers(run, rows, parts)
    # Buffers are allocated once: touching new memory costs more than the arithmetic.
    matrix = np.empty((rows.stop - rows.start, width), vector_dtype(run))
    buckets = np.empty((_steps_per_batch(run, by_window), width), np.float32)
    longest = longest_steps(run, windows if not fits else range(0))
    with one_blas_thread():
        for c, vectors in walk(run, target, windows, whole_blocks):
            if c not in by_window:
                continue
            if fits:
                fit = fitted[c]
            else:
                products_ = window_products(run, vectors, whole)
                fit = fit_window(products_, longest[c - windows.start])
            sums = write_residual(
                run,
                c,
                by_window[c],
                vectors.cut(inside),
                rows,
                fit,
                parts=parts,
                pieces=pieces,
                out=matrix,
            )
            products = [
                _estimates(run, rows, part, buckets, matrix, parts=parts, pieces=pieces)
                for part in slices(by_window[c], len(buckets))
            ]
            projected[c] = Projected(fit, np.concatenate(products), sums)
    return projected


def _steps_per_batch(run: Run, by_window: Mapping[int, slice]) -> int:
    """Return the number of sketches to decode per batch; batches have similar sizes."""
    bytes_of_step = np.dtype(vector_dtype(run)).itemsize * run.spec.sketch_numbers
    most = max(1, STEP_BYTES // bytes_of_step)
    longest: int = max(part.stop - part.start for part in by_window.values())
    return -(-longest // -(-longest // most))


def write_residual(
    run: Run,
    window: int,
    steps: slice,
    vectors: WindowVectors,
    rows: slice,
    fit: Fit,
    *,
    parts: Parts,
    pieces: Pieces,
    out: FloatArray,
) -> ResidualSums:
    """Write column signs * v_perp / w to `out`, (row, bucket), and return sums of v_perp."""
    fold = run.stored.sketch_of(window).fold
    probes, width = run.stored.probes, fold.width
    displacements = displacement_weights(
        run,
        window,
        vectors.advance,
        advance_sq=float(fit.products[:, -1, -1].sum()),
        n_rows=len(out),
    )
    displacement_sum = no_product(run, is_known=displacements is not None)
    folded = np.zeros(width, np.float32)
    # A few rows at a time stay in the cache.
    compiled = _compiled_sums(run, vectors, out)
    subtract_fit = compiled.subtract_fit if compiled else _subtract_fit
    multiply = compiled.displacement_products if compiled else displacement_products
    for part, own in by_rows(pieces.by_layer, len(out), cached_rows(width)):
        here = slice(rows.start + part.start, rows.start + part.stop)
        subtract_fit(run, vectors, here, part, fit, out=out[part])
        _add_signed_rows(run, here, out[part], total=folded)
        if displacements is not None:
            displacement_sum += multiply(run, displacements, rows, out, part, own)
    part_probes = _probe_parts(run, rows, out, parts=parts, pieces=pieces)
    collisions = _collisions(run, vectors, out, parts=parts)
    inverse = (1 / sketch_weights(run, window)).astype(out.dtype)

    def weigh(part: slice, own: Sequence[Piece]) -> None:
        for layer, i, columns in own:
            out[i, columns] *= inverse[layer]
        out[part] *= fold.column_signs[rows.start + part.start : rows.start + part.stop]

    gradients = gradient_energies(run, window, steps)
    found = spread(run, window, gradients)
    whole = run, window, found, rows, out, pieces.by_layer
    if compiled:
        energies = compiled.energy_sums(*whole, inverse)
    else:
        energies = energy_sums(*whole, weigh)
    # Gradients are not finite where training diverged; the quantities are NaN there.
    with np.errstate(invalid="ignore"):
        crowd = energies.by_interval @ _densities(run, gradients).T
        if found is not None:
            crowd += energies.uneven[:, None] * found.steps
    energy = energies.by_interval.sum(1)
    both = [probes.of_folded(folded), _probe_end(run, window, vectors, rows)]
    sums = energies.window_sum, displacement_sum
    return ResidualSums(
        energy, crowd.T, np.stack(both), part_probes, *sums, *collisions
    )


def _compiled_sums(run: Run, vectors: WindowVectors, out: FloatArray) -> Any:
    """Return the module of compiled loops if they are worth their import, else None."""
    types = {v.dtype for v in (vectors.anchor, vectors.target, vectors.advance, out)}
    is_simple = not run.spec.is_packed and types == {np.dtype(np.float32)}
    if not is_simple or run.n_windows * run.layout.size < COMPILED_FROM:
        return None
    return import_module("analyzers._engine.vectors.compiled_sums")


def _densities(run: Run, gradients: FloatArray) -> FloatArray:
    """Return the energy of w g in one bucket per interval, float64 (step, interval)."""
    sizes, width = run.layout.sizes, run.stored.sketch.fold.width
    # Gradients are not finite where training diverged; the quantities are NaN there.
    with np.errstate(invalid="ignore"):
        density = gradients / np.maximum(sizes, 1)
        return bucket_densities(density, run.stored.folded_offsets, sizes, width)


def _folded_pieces(run: Run, rows: slice, n: int) -> list[tuple[int, slice, slice]]:
    """Cut the n elements of `rows` into pieces of a layer: (layer, elements, place in the rows)."""
    # A packed row lacks the gaps between layers.
    layout, width = run.layout, run.stored.sketch.fold.width
    pieces = segments(layout, slice(rows.start * width, rows.start * width + n))
    if not run.spec.is_packed:
        return [(layer, part, part) for layer, part in pieces]
    packed = []
    for layer, part in pieces:
        start = int(layout.offsets[layer])
        stop = min(part.stop, start + int(layout.sizes[layer]))
        shift = int(layout.packed_offsets[layer]) - start
        place = slice(part.start + shift, stop + shift)
        packed.append((layer, slice(part.start, stop), place))
    return packed


def _subtract_fit(
    run: Run,
    vectors: WindowVectors,
    rows: slice,
    part: slice,
    fit: Fit,
    *,
    out: FloatArray,
) -> None:
    """Write to `out` the residual in `rows`: target - anchor minus its fit on the basis."""
    # `part` are the same rows, counted from the start of the vectors.
    if not run.spec.is_packed:
        width = out.shape[-1]
        vectors = vectors.cut(slice(part.start * width, part.stop * width))
    pieces = _folded_pieces(run, rows, len(vectors.anchor))
    flat = out.reshape(-1)
    flat[len(vectors.anchor) :] = 0
    rank = fit.coefficients.shape[-1]
    scratch = np.empty((rank + 1, SEGMENT), out.dtype)
    coefficients = fit.coefficients.astype(out.dtype)
    for whole, numbers in joined([part for _, part, _ in pieces]):
        vectors.write_known(whole, out=scratch[:, : whole.stop - whole.start])
        for layer, own, place in pieces[numbers]:
            segment = scratch[:, own.start - whole.start : own.stop - whole.start]
            basis, v = segment[:rank], segment[rank]
            basis *= coefficients[layer][:, None]
            for vector in basis:
                v -= vector
            flat[place] = v


def _add_signed_rows(
    run: Run, rows: slice, matrix: FloatArray, total: Float32Array
) -> None:
    """Add the rows of a vector to its fold for the probes, (bucket,)."""
    probes = run.stored.probes
    signed_row = np.empty_like(total)
    row_signs, column_signs = probes.row_signs[rows], probes.fold.column_signs[rows]
    for row, sign, signs in zip(matrix, row_signs, column_signs, strict=True):
        np.multiply(row, signs, out=signed_row)
        signed_row *= sign
        total += signed_row


def _probe_parts(
    run: Run, rows: slice, matrix: FloatArray, *, parts: Parts, pieces: Pieces
) -> FloatArray:
    """Return the probes of each part, (part, probe), or (0, probe) for a single part."""
    probes = run.stored.probes
    shape = (parts.count if parts.count > 1 else 0, probes.count)
    result = np.zeros(shape, np.float32)
    row_signs, column_signs = probes.row_signs[rows], probes.fold.column_signs[rows]
    folded = np.zeros(probes.fold.width, np.float32)
    for i, places in pieces.by_part.items() if parts.count > 1 else ():
        first = min(columns.start for _, columns in places)
        buckets = slice(first, max(columns.stop for _, columns in places))
        for row, columns in places:
            signed = matrix[row, columns] * column_signs[row, columns]
            signed *= row_signs[row]
            folded[columns] += signed
        result[i] = probes.of_folded(folded, buckets)
        folded[buckets] = 0
    return result


def _collisions(
    run: Run, vectors: WindowVectors, residual: FloatArray, *, parts: Parts
) -> Collisions:
    """Find elements that share probes, if the sketch and thus the network are small."""
    probes, layout = run.stored.probes, run.layout
    if not run.spec.is_packed:
        return no_collisions(probes.count)
    f = run.stored.folded(vectors.advance)
    if not np.isfinite(f @ f):
        f = np.nan_to_num(f, nan=0.0, posinf=0.0, neginf=0.0)
    return find_collisions(
        f,
        residual[0],
        probes.probe_of_bucket,
        np.repeat(parts.of_layer, layout.sizes),
        block=_blocks(layout),
        n_probes=probes.count,
        n_layers=parts.count if parts.count > 1 else 0,
    )


@lru_cache(maxsize=1)
def _blocks(layout: Layout) -> npt.NDArray[np.int64]:
    """Return the block of every element of a packed vector, (element,)."""
    starts = layout.offsets // BLOCK
    own = [np.arange(size) // BLOCK for size in layout.sizes]
    return np.concatenate([s + b for s, b in zip(starts, own, strict=True)])


def _probe_end(
    run: Run, window: int, vectors: WindowVectors, rows: slice
) -> Float32Array:
    """Return the probes of the advance in the last window, and zeros in other windows."""
    # In other windows, the advance is the difference of two anchors with stored probes.
    probes = run.stored.probes
    if window < run.n_windows - 1:
        return np.zeros(probes.count, np.float32)
    displacement = run.stored.folded(vectors.advance)
    folded = np.zeros(width := probes.fold.width, np.float32)
    for part in slices(rows, cached_rows(width)):
        start, stop = ((row - rows.start) * width for row in (part.start, part.stop))
        own = np.nan_to_num(displacement[start:stop], nan=0.0, posinf=0.0, neginf=0.0)
        folded += probes.row_signs[part] @ probes.fold.signed_rows(own, part.start)
    return probes.of_folded(folded)


def _estimates(
    run: Run,
    rows: slice,
    steps: slice,
    buffer: Float32Array,
    residual: FloatArray,
    *,
    parts: Parts,
    pieces: Pieces,
) -> FloatArray:
    """Decode the sketches of `steps` in a buffer, and `contract` them with the residual."""
    signs, scales = run.stored.rows("signs", steps), run.stored.rows("scales", steps)
    # Lost signs read as zeros, which are valid signs; NaN scales mark these steps.
    lost = run.stored.is_missing("signs", steps)
    scales = np.where(lost[:, None], scales.dtype.type(np.nan), scales)
    factors: Any = 1.0
    if scales.dtype == np.float64:
        # Gradients of float64 may be too small or too large for float32.
        _, exponents = np.frexp(scales.max(1, keepdims=True))
        factors = np.ldexp(1.0, exponents.clip(-1021, 1023))
        scales = (scales / factors).astype(np.float32)
    numbers = run.stored.sign_numbers[steps]
    decoded = run.stored.sketch.decode(
        signs,
        scales,
        numbers,
        out=buffer[: len(numbers)],
        n_sketches=run.n_steps,
    )
    estimates = contract(run, rows, decoded, residual, parts=parts, pieces=pieces)
    estimates *= factors
    return estimates


def contract(
    run: Run,
    rows: slice,
    decoded: Decoded,
    residual: FloatArray,
    *,
    parts: Parts,
    pieces: Pieces,
) -> FloatArray:
    """Estimate <g, v_perp> over `rows` of the fold, float64 (step, part)."""
    # The product has the type of the residual.
    row_signs, buckets = decoded.row_signs[:, rows], decoded.buckets
    if residual.dtype != buckets.dtype:
        buckets = buckets.astype(residual.dtype)
    total = np.zeros((len(buckets), parts.count))
    if not parts.are_layers:
        products = buckets @ residual.T
        total[:, parts.largest] = (products * row_signs).sum(1, dtype=np.float64)
        if parts.count == 1:
            return total
    all_columns = slice(0, run.stored.sketch.fold.width)
    for i, places in pieces.by_part.items():
        if i == parts.largest and not parts.are_layers:
            continue
        whole_rows = [row for row, columns in places if columns == all_columns]
        if whole_rows:
            products = buckets @ residual[whole_rows].T
            total[:, i] += (products * row_signs[:, whole_rows]).sum(1)
        for row, columns in places:
            if row not in whole_rows:
                part = buckets[:, columns] @ residual[row, columns]
                total[:, i] += part * row_signs[:, row]
    if not parts.are_layers:
        # The largest part is the whole without the others.
        others = np.delete(total, parts.largest, axis=1)
        total[:, parts.largest] -= others.sum(1)
    return total


def _cut_at_layers(run: Run, rows: slice, parts: Parts) -> Pieces:
    """Cut `rows` of the fold at the borders of layers."""
    places = run.stored.folded_offsets, run.layout.sizes
    by_layer = layer_pieces(rows, *places, run.stored.sketch.fold.width)
    by_part: dict[int, list[tuple[int, slice]]] = {}
    for layer, row, columns in by_layer:
        by_part.setdefault(int(parts.of_layer[layer]), []).append((row, columns))
    return Pieces(by_layer, by_part)
