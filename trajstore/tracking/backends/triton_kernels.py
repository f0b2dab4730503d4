"""Compiled loops for GPUs that read gradients and parameters once, in Triton.

They compute the same as `trajstore.tracking.backends.cpu_kernels`.
`trajstore.tracking.backends.triton` says how the work is divided, and calls these functions.

Tensors are reached by their addresses: a table has, for every tensor, the address that the
first element of the flat vector would have if the vector lay where the tensor does, and the
kind of its elements. Nothing is copied into one flat buffer.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import torch
import triton
import triton.language as tl

F = TypeVar("F", bound=Callable[..., Any])

KINDS: Final = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Types of elements that kernels read, and their numbers in tables of addresses."""

ABSENT: Final = -1
"""Kind of a tensor that reads as zeros."""


def _jit(*, varying: Sequence[str] = ()) -> Callable[[F], Any]:
    """Compile a function for a GPU, once for all values of the varying arguments."""
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
    """Read elements of two neighbouring tensors, as float32; zeros outside the mask."""
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
    """Decode elements of a code; zeros outside the mask."""
    codes = tl.load(past).to(tl.pointer_type(tl.int8))
    scales = tl.load(past + n_codes).to(tl.pointer_type(tl.float32))
    code = tl.load(codes + element, mask=mask, other=0).to(tl.float32)
    return code * tl.load(scales + element // BLOCK, mask=mask, other=0.0)


@_jit()
def _keep(product, is_second, is_split, target, N_COLUMNS: tl.constexpr):
    """Store the sum of products, separately for two tensors."""
    if is_split:
        tl.store(target, tl.sum(tl.where(is_second, 0.0, product), 0))
        tl.store(target + N_COLUMNS, tl.sum(tl.where(is_second, product, 0.0), 0))
    else:
        tl.store(target, tl.sum(product, 0))


@_jit(varying=("n_codes",))
def measure_before(
    gradients,  # int64 (2, layer): table of addresses and kinds
    parameters,  # int64 (2, layer)
    n_layers,
    ends,  # int64 (layer,): one past the last element of each tensor
    segments,  # int32 (row, tile, 4): first and last tensor, row of sums, border block
    rows,  # float32 (3, size): last gradient, overwritten; displacement, written; anchor
    size,  # length of a row
    past,  # int64 (2, code): addresses of codes and scales, see `past_anchors`
    n_codes,
    sums,  # float32 (sum, N_COLUMNS): overwritten; two rows for a segment of two tensors
    weights,  # float32 (layer,): of the sketch
    columns,  # int8: column sequence of the sketch
    probe_columns,  # int8: column sequence of the probes
    row_signs,  # float32 (row,): of the sketch's fold
    probe_row_signs,  # float32 (row,): of the folds of gradient and displacement
    folds,  # float32 (part, 3, bucket): of gradient and displacement, and for the sketch
    n_rows,  # of the fold
    n_rows_each,  # rows of one program at most
    width,  # length of a row of the fold
    N_BASIS: tl.constexpr,
    N_COLUMNS: tl.constexpr,
    GRAD_DOT_PREVIOUS: tl.constexpr,
    GRAD_SQ: tl.constexpr,
    GRAD_DOT_DISPLACEMENT: tl.constexpr,
    GRAD_DOT_BASIS: tl.constexpr,
    DISPLACEMENT_SQ: tl.constexpr,
    DISPLACEMENT_DOT_BASIS: tl.constexpr,
    HAS_GRADIENTS: tl.constexpr,  # a bit for each of `KINDS` among the tensors
    HAS_PARAMETERS: tl.constexpr,
    WITH_FOLDS: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    """Measure gradients and parameters; program (i, j) some rows of some columns."""
    tile, part = tl.program_id(0), tl.program_id(1)
    column = tile * SEGMENT + tl.arange(0, SEGMENT)
    is_inside = column < width
    of_gradient = tl.zeros([SEGMENT], tl.float32)
    of_displacement = tl.zeros([SEGMENT], tl.float32)
    of_weighted = tl.zeros([SEGMENT], tl.float32)
    first_row = part * n_rows_each
    for row in range(first_row, tl.minimum(first_row + n_rows_each, n_rows)):
        segment = segments + 4 * (row * tl.num_programs(0) + tile)
        first, second = tl.load(segment), tl.load(segment + 1)
        place, border = tl.load(segment + 2), tl.load(segment + 3)
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
            gradients, n_layers, first, second, is_second, element, mask, HAS_GRADIENTS
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

        target = sums + place.to(tl.int64) * N_COLUMNS
        at = target + GRAD_DOT_PREVIOUS
        _keep(gradient * previous, is_second, is_split, at, N_COLUMNS)
        at = target + GRAD_SQ
        _keep(gradient * gradient, is_second, is_split, at, N_COLUMNS)
        at = target + GRAD_DOT_DISPLACEMENT
        _keep(gradient * displacement, is_second, is_split, at, N_COLUMNS)
        at = target + DISPLACEMENT_SQ
        _keep(displacement * displacement, is_second, is_split, at, N_COLUMNS)
        vector = anchor
        for i in tl.static_range(N_BASIS):
            if i == 1:
                vector = tl.zeros([SEGMENT], tl.float32)
            if i > 0:
                # The anchor less an earlier one is the sum of the codes between.
                for k in range((1 << i) >> 2, tl.minimum((1 << i) >> 1, n_codes)):
                    vector += _decode(past + k, n_codes, element, mask, BLOCK)
            at = target + GRAD_DOT_BASIS + i
            _keep(gradient * vector, is_second, is_split, at, N_COLUMNS)
            at = target + DISPLACEMENT_DOT_BASIS + i
            _keep(displacement * vector, is_second, is_split, at, N_COLUMNS)

        if WITH_FOLDS:
            weight = tl.where(
                is_second, tl.load(weights + second), tl.load(weights + first)
            )
            place_of_sign = SHIFT * row + column
            sign = tl.load(columns + place_of_sign, mask=is_inside, other=0).to(
                tl.float32
            )
            of_weighted += tl.load(row_signs + row) * sign * (weight * gradient)
            sign = tl.load(probe_columns + place_of_sign, mask=is_inside, other=0).to(
                tl.float32
            )
            sign *= tl.load(probe_row_signs + row)
            of_gradient += sign * gradient
            of_displacement += sign * displacement

    if WITH_FOLDS:
        n_buckets = tl.num_programs(0) * SEGMENT
        out = folds + part * 3 * n_buckets + column
        tl.store(out, of_gradient)
        tl.store(out + n_buckets, of_displacement)
        tl.store(out + 2 * n_buckets, of_weighted)


@_jit()
def measure_after(
    parameters,  # as in `measure_before`, which has written the displacement
    n_layers,
    ends,
    layer_of_block,  # int32 (block,)
    rows,
    size,
    sums,  # float32 (block, N_COLUMNS): overwritten
    checks,  # int64 (block,): overwritten with sums that change with the parameters' bits
    N_COLUMNS: tl.constexpr,
    UPDATE_SQ: tl.constexpr,
    UPDATE_DOT_DISPLACEMENT: tl.constexpr,
    HAS_PARAMETERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Measure the update; program i one block."""
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
    # Near the anchor x - r is exact, and so is the difference of two of them.
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
    """Write the displacement; arguments as in `measure_after`."""
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
    columns,  # signs, as in `measure_before`
    row_signs,
    folds,  # float32 (part, bucket): overwritten
    n_rows,
    n_rows_each,
    width,
    SHIFT: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    """Fold one vector; program (i, j) some rows of some columns."""
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
    bounds,  # int32 (run + 1,): rows that runs begin with, and the end of the last
    out,  # float32 or float64 (run, at least column): overwritten
    out_stride,
    N_COLUMNS: tl.constexpr,
    COLUMNS: tl.constexpr,  # the next power of two
    ROWS: tl.constexpr,
):
    """Add rows of a table in float64 in a fixed order; program i one run."""
    run = tl.program_id(0)
    first, stop = tl.load(bounds + run), tl.load(bounds + run + 1)
    column = tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    for start in range(first, stop, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        mask = (row < stop) & (column < N_COLUMNS)
        place = row.to(tl.int64) * N_COLUMNS + column
        total += tl.load(values + place, mask=mask, other=0.0).to(tl.float64)
    column = tl.arange(0, COLUMNS)
    target = out + run * out_stride + column
    tl.store(target, tl.sum(total, 0), mask=column < N_COLUMNS)


@_jit(varying=("seed", "step"))
def draw_signs(out, n, seed, step, ROLE: tl.constexpr, BLOCK: tl.constexpr):
    """Draw the `sketch.signs.random_signs` of a step, (n,); program i one block."""
    # Each sign is computed by itself, by ten rounds of Philox4x64.
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
    which = (index // 64) % 4
    word = tl.where(which < 2, tl.where(which == 0, a, b), tl.where(which == 2, c, d))
    # Bytes in little-endian order, in each the highest bit first.
    place = 8 * ((index % 64) // 8) + 7 - index % 8
    bit = ((word >> place.to(tl.uint64)) & 1).to(tl.float32)
    tl.store(out + index, 2.0 * bit - 1.0, mask=index < n)
