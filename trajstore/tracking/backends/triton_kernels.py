"""Compiled loops for GPUs, in Triton, that read gradients and parameters only once.

They compute the same numbers as `trajstore.tracking.backends.cpu.measuring`. The module
`trajstore.tracking.backends.triton` explains how the work is divided, and calls these functions.

Kernels read tensors through a table of addresses, without copying them into a flat buffer. For
every tensor, the table has the kind of its elements, and the tensor's address minus its offset in
the flat vector. To this difference, kernels add the offset of an element in the flat vector.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import torch
import triton
import triton.language as tl

F = TypeVar("F", bound=Callable[..., Any])

KINDS: Final = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Types of elements that kernels can read, with their numbers in tables of addresses."""

ABSENT: Final = -1
"""Kind of a missing tensor, which kernels read as zeros."""


def _jit(*, varying: Sequence[str] = ()) -> Callable[[F], Any]:
    """Compile a function for a GPU; it is not specialised to values of varying arguments."""
    return lambda function: triton.jit(function, do_not_specialize=list(varying))


@_jit()
def _read(
    table,
    n_layers,
    first,
    second,
    is_second,
    element,
    mask,
    HAS: tl.constexpr,
):
    """Return elements of two neighbouring tensors as float32, or zeros outside the mask."""
    base = tl.where(is_second, tl.load(table + second), tl.load(table + first))
    table += n_layers
    kind = tl.where(is_second, tl.load(table + second), tl.load(table + first))
    address = base + element * tl.where(kind == 0, 4, 2)
    values = tl.zeros(element.shape, tl.float32)
    if HAS & 1:
        pointer = address.to(tl.pointer_type(tl.float32))
        values = tl.load(pointer, mask=mask & (kind == 0), other=0.0)
    if HAS & 2:
        pointer = address.to(tl.pointer_type(tl.bfloat16))
        loaded = tl.load(pointer, mask=mask & (kind == 1), other=0.0)
        values = tl.where(kind == 1, loaded.to(tl.float32), values)
    if HAS & 4:
        pointer = address.to(tl.pointer_type(tl.float16))
        loaded = tl.load(pointer, mask=mask & (kind == 2), other=0.0)
        values = tl.where(kind == 2, loaded.to(tl.float32), values)
    return values


@_jit()
def _decode(past, n_codes, element, mask, BLOCK: tl.constexpr):
    """Return decoded elements of a coded anchor, or zeros outside the mask."""
    codes = tl.load(past).to(tl.pointer_type(tl.int8))
    scales = tl.load(past + n_codes).to(tl.pointer_type(tl.float32))
    code = tl.load(codes + element, mask=mask, other=0).to(tl.float32)
    return code * tl.load(scales + element // BLOCK, mask=mask, other=0.0)


@_jit()
def _store_sum(product, is_second, is_split, target, N_COLUMNS: tl.constexpr):
    """Store the sum of products, separately for the two tensors of a split segment."""
    if is_split:
        tl.store(target, tl.sum(tl.where(is_second, 0.0, product), 0))
        tl.store(target + N_COLUMNS, tl.sum(tl.where(is_second, product, 0.0), 0))
    else:
        tl.store(target, tl.sum(product, 0))


@_jit(varying=("n_codes",))
def measure_before(
    gradients,  # int64 (2, layer): table of addresses and kinds
    parameters,  # int64 (2, layer): table of addresses and kinds
    n_layers,
    ends,  # int64 (layer,): index after the last element of each tensor
    # int32 (row, tile, 4): for each segment, its first and last tensor, its (first) row in
    # `sums`, and the first block of the last tensor.
    segments,
    # float32 (3, size): the last gradient, replaced by the gradient; the displacement,
    # overwritten; the anchor, only read.
    rows,
    size,  # length of each of `rows`
    past,  # int64 (2, code): addresses of codes and scales, see `past_anchors`
    n_codes,
    sums,  # float32 (sum, N_COLUMNS): overwritten; a segment of two tensors has two rows
    weights,  # float32 (layer,): weights of the sketch
    columns,  # int8: column sequence of the sketch
    probe_columns,  # int8: column sequence of the probes
    row_signs,  # float32 (row,): row signs of the sketch
    probe_row_signs,  # float32 (row,): row signs of the probes
    # float32 (part, 3, bucket): overwritten with folds of the gradient and the displacement for
    # the probes, and of the weighted gradient for the sketch.
    folds,
    window_row_signs,  # float32 (row,): row signs of the window's sum
    # float32 (part, N_WINDOW_FOLDS, bucket): the weighted gradient is added to it; the rows are
    # dealt to the folds in turn.
    window_folds,
    # float32 (segment, 2): overwritten with |g|^2 in the first block of each segment, and in the
    # next block.
    energies,
    n_rows,  # number of rows of the fold
    n_rows_each,  # maximum number of rows per program
    width,  # length of a row of the fold
    N_WINDOW_FOLDS: tl.constexpr,
    N_BASIS: tl.constexpr,
    N_COLUMNS: tl.constexpr,
    GRAD_DOT_PREVIOUS: tl.constexpr,
    GRAD_SQ: tl.constexpr,
    GRAD_DOT_DISPLACEMENT: tl.constexpr,
    GRAD_DOT_BASIS: tl.constexpr,
    DISPLACEMENT_SQ: tl.constexpr,
    DISPLACEMENT_DOT_BASIS: tl.constexpr,
    HAS_GRADIENTS: tl.constexpr,  # bit mask of the `KINDS` among the gradients
    HAS_PARAMETERS: tl.constexpr,  # bit mask of the `KINDS` among the parameters
    WITH_FOLDS: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    """Measure gradients and parameters; program (i, j) handles tile i of the rows in part j."""
    tile, part = tl.program_id(0), tl.program_id(1)
    column = tile * SEGMENT + tl.arange(0, SEGMENT)
    is_inside = column < width
    gradient_fold = tl.zeros([SEGMENT], tl.float32)
    displacement_fold = tl.zeros([SEGMENT], tl.float32)
    weighted_fold = tl.zeros([SEGMENT], tl.float32)
    n_buckets = tl.num_programs(0) * SEGMENT
    first_row = part * n_rows_each
    stop_row = tl.minimum(first_row + n_rows_each, n_rows)
    # Rows of one fold of the window's sum follow each other, so that it stays in registers.
    STRIDE: tl.constexpr = max(N_WINDOW_FOLDS, 1)
    for i_fold in range(STRIDE):
        window_fold = tl.zeros([SEGMENT], tl.float32)
        start_row = first_row + (i_fold + STRIDE - first_row % STRIDE) % STRIDE
        for row in range(start_row, stop_row, STRIDE):
            segment = segments + 4 * (row * tl.num_programs(0) + tile)
            first, second = tl.load(segment), tl.load(segment + 1)
            sums_row, border = tl.load(segment + 2), tl.load(segment + 3)
            element = tl.cast(row, tl.int64) * width + column
            is_second = element >= border.to(tl.int64) * BLOCK
            is_split = first != second
            end = tl.where(is_second, tl.load(ends + second), tl.load(ends + first))
            mask = is_inside & (element < end)

            previous_pointer = rows + element
            displacement_pointer = previous_pointer + size
            anchor_pointer = displacement_pointer + size
            previous = tl.load(previous_pointer, mask=mask, other=0.0)
            anchor = tl.load(anchor_pointer, mask=mask, other=0.0)
            gradient = _read(
                gradients,
                n_layers,
                first,
                second,
                is_second,
                element,
                mask,
                HAS_GRADIENTS,
            )
            parameter = _read(
                parameters,
                n_layers,
                first,
                second,
                is_second,
                element,
                mask,
                HAS_PARAMETERS,
            )
            displacement = parameter - anchor
            tl.store(previous_pointer, gradient, mask=mask)
            tl.store(displacement_pointer, displacement, mask=mask)

            target = sums + sums_row.to(tl.int64) * N_COLUMNS
            sum_pointer = target + GRAD_DOT_PREVIOUS
            _store_sum(gradient * previous, is_second, is_split, sum_pointer, N_COLUMNS)
            # A border between tensors is a border between blocks, and no segment has two.
            square = gradient * gradient
            is_next = element // BLOCK > (element - tl.arange(0, SEGMENT)) // BLOCK
            in_first = tl.sum(tl.where(is_next, 0.0, square), 0)
            in_next = tl.sum(tl.where(is_next, square, 0.0), 0)
            energy = energies + 2 * (row * tl.num_programs(0) + tile)
            tl.store(energy, in_first)
            tl.store(energy + 1, in_next)
            if is_split:
                tl.store(target + GRAD_SQ, in_first)
                tl.store(target + GRAD_SQ + N_COLUMNS, in_next)
            else:
                tl.store(target + GRAD_SQ, in_first + in_next)
            sum_pointer = target + GRAD_DOT_DISPLACEMENT
            _store_sum(
                gradient * displacement, is_second, is_split, sum_pointer, N_COLUMNS
            )
            sum_pointer = target + DISPLACEMENT_SQ
            _store_sum(
                displacement * displacement, is_second, is_split, sum_pointer, N_COLUMNS
            )
            vector = anchor
            for i in tl.static_range(N_BASIS):
                if i == 1:
                    vector = tl.zeros([SEGMENT], tl.float32)
                if i > 0:
                    # The anchor minus an earlier anchor is the sum of the codes between them.
                    for k in range((1 << i) >> 2, tl.minimum((1 << i) >> 1, n_codes)):
                        vector += _decode(past + k, n_codes, element, mask, BLOCK)
                sum_pointer = target + GRAD_DOT_BASIS + i
                _store_sum(
                    gradient * vector, is_second, is_split, sum_pointer, N_COLUMNS
                )
                sum_pointer = target + DISPLACEMENT_DOT_BASIS + i
                _store_sum(
                    displacement * vector, is_second, is_split, sum_pointer, N_COLUMNS
                )

            if WITH_FOLDS:
                weight = tl.where(
                    is_second, tl.load(weights + second), tl.load(weights + first)
                )
                sign_index = SHIFT * row + column
                sign = tl.load(columns + sign_index, mask=is_inside, other=0).to(
                    tl.float32
                )
                weighted = sign * (weight * gradient)
                weighted_fold += tl.load(row_signs + row) * weighted
                if N_WINDOW_FOLDS > 0:
                    window_fold += tl.load(window_row_signs + row) * weighted
                sign = tl.load(probe_columns + sign_index, mask=is_inside, other=0).to(
                    tl.float32
                )
                sign *= tl.load(probe_row_signs + row)
                gradient_fold += sign * gradient
                displacement_fold += sign * displacement
        if N_WINDOW_FOLDS > 0:
            out = window_folds + (part * N_WINDOW_FOLDS + i_fold) * n_buckets + column
            tl.store(out, tl.load(out) + window_fold)

    if WITH_FOLDS:
        out = folds + part * 3 * n_buckets + column
        tl.store(out, gradient_fold)
        tl.store(out + n_buckets, displacement_fold)
        tl.store(out + 2 * n_buckets, weighted_fold)


@_jit()
def measure_after(
    # Arguments without a comment are as in `measure_before`, which must have run.
    parameters,
    n_layers,
    ends,
    layer_of_block,  # int32 (block,): index of the layer of each block
    rows,
    size,
    sums,  # float32 (block, N_COLUMNS): overwritten
    checks,  # int64 (block,): overwritten with checksums of the parameters
    N_COLUMNS: tl.constexpr,
    UPDATE_SQ: tl.constexpr,
    UPDATE_DOT_DISPLACEMENT: tl.constexpr,
    HAS_PARAMETERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Measure the update; program i handles block i."""
    block = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    element = block.to(tl.int64) * BLOCK + lane
    layer = tl.load(layer_of_block + block)
    mask = element < tl.load(ends + layer)
    parameter = _read(
        parameters, n_layers, layer, layer, element < 0, element, mask, HAS_PARAMETERS
    )
    displacement = tl.load(rows + size + element, mask=mask, other=0.0)
    anchor = tl.load(rows + size + size + element, mask=mask, other=0.0)
    # Near the anchor r, x - r is exact, and so is the difference of two displacements.
    update = (parameter - anchor) - displacement
    target = sums + N_COLUMNS * block
    tl.store(target + UPDATE_SQ, tl.sum(update * update, 0))
    tl.store(target + UPDATE_DOT_DISPLACEMENT, tl.sum(update * displacement, 0))
    bits = parameter.to(tl.int32, bitcast=True).to(tl.int64)
    tl.store(checks + block, tl.sum(bits * (2 * lane + 1), 0))


@_jit()
def subtract_anchor(
    parameters,
    n_layers,
    ends,
    layer_of_block,
    rows,
    size,
    HAS_PARAMETERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the displacement to `rows`; the arguments are as in `measure_after`."""
    block = tl.program_id(0)
    element = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    layer = tl.load(layer_of_block + block)
    mask = element < tl.load(ends + layer)
    parameter = _read(
        parameters, n_layers, layer, layer, element < 0, element, mask, HAS_PARAMETERS
    )
    anchor = tl.load(rows + size + size + element, mask=mask, other=0.0)
    tl.store(rows + size + element, parameter - anchor, mask=mask)


@_jit()
def fold(
    vector,  # float32 (size,)
    size,
    columns,  # int8: sequence of column signs
    row_signs,  # float32 (row,)
    folds,  # float32 (part, bucket): overwritten
    n_rows,
    n_rows_each,
    width,
    SHIFT: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    """Fold one vector; program (i, j) handles tile i of the rows in part j."""
    tile, part = tl.program_id(0), tl.program_id(1)
    column = tile * SEGMENT + tl.arange(0, SEGMENT)
    is_inside = column < width
    total = tl.zeros([SEGMENT], tl.float32)
    first_row = part * n_rows_each
    for row in range(first_row, tl.minimum(first_row + n_rows_each, n_rows)):
        element = tl.cast(row, tl.int64) * width + column
        mask = is_inside & (element < size)
        sign = tl.load(columns + SHIFT * row + column, mask=is_inside, other=0)
        sign = sign.to(tl.float32) * tl.load(row_signs + row)
        total += sign * tl.load(vector + element, mask=mask, other=0.0)
    tl.store(folds + part * tl.num_programs(0) * SEGMENT + column, total)


@_jit()
def add_up(
    values,  # float32 or float64 (row, column)
    bounds,  # int32 (group + 1,): first row of each group of rows, and the number of rows
    out,  # float32 or float64 (group, column or more): overwritten
    out_stride,  # distance of the rows of `out`
    N_COLUMNS: tl.constexpr,
    COLUMNS: tl.constexpr,  # the smallest power of two that is at least N_COLUMNS
    ROWS: tl.constexpr,  # number of rows to add in one batch
):
    """Add the rows of each group in float64 in a fixed order; program i handles group i."""
    group = tl.program_id(0)
    first, stop = tl.load(bounds + group), tl.load(bounds + group + 1)
    column = tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    for start in range(first, stop, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        mask = (row < stop) & (column < N_COLUMNS)
        index = row.to(tl.int64) * N_COLUMNS + column
        total += tl.load(values + index, mask=mask, other=0.0).to(tl.float64)
    column = tl.arange(0, COLUMNS)
    target = out + group * out_stride + column
    tl.store(target, tl.sum(total, 0), mask=column < N_COLUMNS)


@_jit()
def add_neighbours(
    values,  # float32 (value,)
    bounds,  # int32 (group + 1,): first value of each group of neighbours, and their number
    out,  # float32 (group,): the sums are added to it
    n_groups,
    most,  # number of values in the largest group
    LANES: tl.constexpr,
):
    """Add up the values of each group in a fixed order; program i handles `LANES` groups."""
    group = tl.program_id(0) * LANES + tl.arange(0, LANES)
    mask = group < n_groups
    first = tl.load(bounds + group, mask=mask, other=0)
    n_values = tl.load(bounds + group + 1, mask=mask, other=0) - first
    total = tl.zeros([LANES], tl.float32)
    for i in range(most):
        total += tl.load(values + first + i, mask=mask & (i < n_values), other=0.0)
    before = tl.load(out + group, mask=mask, other=0.0)
    tl.store(out + group, before + total, mask=mask)


@_jit(varying=("seed", "step"))
def draw_signs(out, n, seed, step, ROLE: tl.constexpr, BLOCK: tl.constexpr):
    """Write the random signs of a step to `out`, float32 (n,); program i handles block i."""
    # Ten rounds of Philox4x64 per sign give the bits of `trajstore.sketch.signs`.
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = (index // 256 + 1).to(tl.uint64)
    b = tl.zeros([BLOCK], tl.uint64)
    c = tl.zeros([BLOCK], tl.uint64)
    d = b + step.to(tl.uint64)
    key = b + seed.to(tl.uint64)
    other_key = b + ROLE
    for _ in tl.static_range(10):
        high_a = tl.umulhi(a, 0xD2E7470EE14C6C93)
        low_a = a * 0xD2E7470EE14C6C93
        high_c = tl.umulhi(c, 0xCA5A826395121157)
        low_c = c * 0xCA5A826395121157
        a, b, c, d = high_c ^ b ^ key, low_c, high_a ^ d ^ other_key, low_a
        key += 0x9E3779B97F4A7C15
        other_key += 0xBB67AE8584CAA73B
    i_word = (index // 64) % 4
    first_words, last_words = tl.where(i_word == 0, a, b), tl.where(i_word == 2, c, d)
    word = tl.where(i_word < 2, first_words, last_words)
    # The bytes are in little-endian order, and each byte begins with its highest bit.
    bit_index = 8 * ((index % 64) // 8) + 7 - index % 8
    bit = ((word >> bit_index.to(tl.uint64)) & 1).to(tl.float32)
    tl.store(out + index, 2.0 * bit - 1.0, mask=index < n)
