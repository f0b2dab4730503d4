"""Compiled loops for CPUs that measure large networks, whose vectors are compact.

They do what the loops of `measuring` do, and read and write the last gradient and the displacement as
words of `compact_words`, block by block. The ranges of small tensors hold both vectors in float32.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
from numba import float32, float64, int32, int64

from trajstore.format.layout import BLOCK
from trajstore.tracking.backends.cpu.arguments import arguments_at
from trajstore.tracking.backends.cpu.block_loops import (
    subtract,
    sum_of_bits,
    update_products,
)
from trajstore.tracking.backends.cpu.compact_words import errors, pack, unpack
from trajstore.tracking.backends.cpu.compiling import (
    compiled_for_parts_when_needed,
    compiled_when_called,
    inlined,
)
from trajstore.tracking.backends.cpu.measuring import (
    AFTER,
    BEFORE,
    add_energy,
    erase_results,
    measure_range,
)
from trajstore.tracking.backends.cpu.ranges import (
    INDEX,
    LAYER,
    LENGTH,
    N_FACTS,
    START,
    TENSOR,
)
from trajstore.tracking.backends.cpu.views import (
    add_to,
    address_of,
    at,
    erase,
    floats_at,
    part_of,
    words_at,
)

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Words = npt.NDArray[np.int32]
Integers = npt.NDArray[np.int64]

N_RANGE_FACTS: Final = 5
"""Columns of `facts`: the scales of both vectors, the results of `compact_words.errors`, and the factor
of products with the last gradient."""

_COMPACT: Final = {
    "words": int32[::1],  # (word,): the vectors of every range, where `places` says
    # (range,): first word of the range. A negative number is -1 - place, and the range has two words
    # for each element: the gradient in float32, and `BLOCK` words later the displacement.
    "places": int64[::1],
    "facts": float64[:, ::1],  # (range, 5): see above
    # (4 parts, `BLOCK`): memory for four blocks; overwritten
    "buffers": float32[:, ::1],
}

# `rows` has only one row, the anchor.
COMPACT_BEFORE: Final = BEFORE | _COMPACT
COMPACT_AFTER: Final = AFTER | _COMPACT

_before_at = arguments_at(*COMPACT_BEFORE.values())
_after_at = arguments_at(*COMPACT_AFTER.values())


@inlined
def _read(
    range_index: int,
    place: int,
    n: int,
    words: Words,
    facts: Doubles,
    buffers: Floats,
    buffer: int,
) -> tuple[Floats, Floats]:
    """View the last gradient and the displacement of a range, in buffers if they are compact."""
    # Every block of tensors begins at the start of a page, and so do these buffers.
    first = address_of(buffers) + 4 * BLOCK * buffer
    second = first + 4 * BLOCK
    if place < 0:
        first = address_of(words) + 4 * (-1 - place)
        second = first + 4 * BLOCK
    gradient, displacement = floats_at(first, n), floats_at(second, n)
    if place >= 0:
        scale = np.float32(at(facts, N_RANGE_FACTS * range_index))
        other_scale = np.float32(at(facts, N_RANGE_FACTS * range_index + 1))
        block = part_of(words, place, n)
        unpack(block, scale, other_scale, gradient, displacement)
    return gradient, displacement


@compiled_for_parts_when_needed
def measure_before(part: int, arguments: int) -> None:
    """Measure gradients and parameters, and the last update, in the ranges of one part."""
    # `arguments` is the address of the arguments `COMPACT_BEFORE`.
    (
        bounds,
        gradients,
        parameters,
        ranges,
        rows,
        past,
        sums,
        columns,
        basis_columns,
        width,
        filled,
        sketch_columns,
        probe_columns,
        probe_signs,
        row_signs,
        weights,
        folds,
        window_signs,
        window_folds,
        energies,
        squares,
        update_sums,
        update_columns,
        energy,
        energy_column,
        buffers,
        words,
        places,
        facts,
    ) = _before_at(arguments)
    n_parts, n_update_columns = sums.shape[0], update_sums.shape[2]
    n_update_sums = update_sums.shape[1] * n_update_columns
    erase_results(part, filled, sums, update_sums, update_columns, folds)
    # The first buffers are those of `measure_range`.
    buffer = n_parts + 3 * part
    for i in range(at(bounds, part), at(bounds, part + 1)):
        block = part_of(ranges, N_FACTS * i, N_FACTS)
        start, n, place = at(block, START), at(block, LENGTH), at(places, i)
        gradient, displacement = _read(i, place, n, words, facts, buffers, buffer)
        anchor = part_of(rows, start, n)
        address = at(parameters, at(block, TENSOR)) + 4 * at(block, INDEX)
        parameter = floats_at(address, n)
        if n_update_sums > 0:
            u_u, u_a = update_products(parameter, anchor, displacement)
            target = part * n_update_sums + at(block, LAYER) * n_update_columns
            if place >= 0:
                u_u -= at(facts, N_RANGE_FACTS * i + 2)
                u_a -= at(facts, N_RANGE_FACTS * i + 3)
            add_to(update_sums, target + at(update_columns, 0), u_u)
            add_to(update_sums, target + at(update_columns, 1), u_a)
        measure_range(
            part,
            i,
            block,
            parameter,
            anchor,
            gradient,
            at(facts, N_RANGE_FACTS * i + 4),
            displacement,
            gradients,
            past,
            sums,
            columns,
            basis_columns,
            width,
            sketch_columns,
            probe_columns,
            probe_signs,
            row_signs,
            weights,
            folds,
            window_signs,
            window_folds,
            energies,
            squares,
            buffers,
        )
        if place >= 0:
            rounded = part_of(buffers, BLOCK * (buffer + 2), n)
            of_gradient, of_displacement, factor = pack(
                gradient, displacement, part_of(words, place, n), rounded
            )
            e_e, e_a = errors(parameter, anchor, rounded)
            facts[i, 0] = of_gradient
            facts[i, 1] = of_displacement
            facts[i, 2] = e_e
            facts[i, 3] = e_a
            facts[i, 4] = factor
    add_energy(energy, energy_column, update_sums)


@compiled_for_parts_when_needed
def measure_after(part: int, arguments: int) -> None:
    """Measure the update in the ranges of one part."""
    # `arguments` is the address of the arguments `COMPACT_AFTER`.
    (
        bounds,
        parameters,
        ranges,
        rows,
        sums,
        columns,
        checks,
        words,
        places,
        facts,
        buffers,
    ) = _after_at(arguments)
    n_layers, n_columns, n_parts = sums.shape[1], sums.shape[2], sums.shape[0]
    buffer = n_parts + 3 * part
    for i in range(at(bounds, part), at(bounds, part + 1)):
        block = part_of(ranges, N_FACTS * i, N_FACTS)
        start, n, place = at(block, START), at(block, LENGTH), at(places, i)
        _, displacement = _read(i, place, n, words, facts, buffers, buffer)
        address = at(parameters, at(block, TENSOR)) + 4 * at(block, INDEX)
        parameter, anchor = floats_at(address, n), part_of(rows, start, n)
        u_u, u_a = update_products(parameter, anchor, displacement)
        if place >= 0:
            u_u -= at(facts, N_RANGE_FACTS * i + 2)
            u_a -= at(facts, N_RANGE_FACTS * i + 3)
        layer = part * n_layers + at(block, LAYER)
        add_to(sums, layer * n_columns + at(columns, 0), u_u)
        add_to(sums, layer * n_columns + at(columns, 1), u_a)
        checks[part, at(block, LAYER)] += sum_of_bits(
            words_at(address, n), at(block, INDEX)
        )


_VECTORS: Final = (int32[::1], int64[::1], float64[:, ::1])


@compiled_when_called(int64[::1], int64[:, ::1], float32[::1], float32[::1])
def subtract_anchor(
    parameters: Integers, ranges: Integers, anchor: Floats, out: Floats
) -> None:
    """Set `out` to the parameters minus the anchor; starts of the ranges count from its start."""
    for i in range(len(ranges)):
        start, n = ranges[i, START], ranges[i, LENGTH]
        address = parameters[ranges[i, TENSOR]] + 4 * ranges[i, INDEX]
        subtract(
            floats_at(address, n), part_of(anchor, start, n), part_of(out, start, n)
        )


@compiled_when_called(
    *_VECTORS,
    int64[:, ::1],
    float32[:, ::1],
    int64,
    int64[::1],
    float32[::1],
    float32[::1],
)
def read_vector(
    words: Words,
    places: Integers,
    facts: Doubles,
    ranges: Integers,
    buffers: Floats,  # (2 or more, `BLOCK`): overwritten
    which: int,  # 0 for the last gradient, 1 for the displacement
    parameters: Integers,
    anchor: Floats,
    out: Floats,  # (size,): overwritten, except in gaps between tensors
) -> None:
    """Read one of the vectors; the displacement is exact in ranges that have not moved."""
    for i in range(len(ranges)):
        block = part_of(ranges, N_FACTS * i, N_FACTS)
        start, n, place = at(block, START), at(block, LENGTH), at(places, i)
        gradient, displacement = _read(i, place, n, words, facts, buffers, 0)
        if which == 1 and place >= 0:
            address = at(parameters, at(block, TENSOR)) + 4 * at(block, INDEX)
            parameter, r = floats_at(address, n), part_of(anchor, start, n)
            e_e, e_a = errors(parameter, r, displacement)
            if e_e == facts[i, 2] and e_a == facts[i, 3]:
                subtract(parameter, r, displacement)
        factor = np.float32(facts[i, 4])
        for k in range(n):
            out[start + k] = factor * gradient[k] if which == 0 else displacement[k]


@compiled_when_called(*_VECTORS, int64[:, ::1], float32[:, ::1], int64, float32[::1])
def write_vector(
    words: Words,
    places: Integers,
    facts: Doubles,
    ranges: Integers,
    buffers: Floats,  # (4 or more, `BLOCK`): overwritten
    which: int,
    vector: Floats,  # (size,)
) -> None:
    """Replace one of the vectors."""
    for i in range(len(ranges)):
        start, n, place = ranges[i, START], ranges[i, LENGTH], places[i]
        gradient, displacement = _read(i, place, n, words, facts, buffers, 0)
        for k in range(n):
            if which == 0:
                gradient[k] = vector[start + k]
            else:
                displacement[k] = vector[start + k]
        if place < 0:
            continue
        # Packing what was read from words gives the same words, or others that are read alike.
        rounded, zeros = part_of(buffers, 2 * BLOCK, n), part_of(buffers, 3 * BLOCK, n)
        of_gradient, of_displacement, factor = pack(
            gradient, displacement, part_of(words, place, n), rounded
        )
        facts[i, 0], facts[i, 1] = of_gradient, of_displacement
        if which == 0:
            facts[i, 4] = factor
        else:
            erase(buffers, 3 * BLOCK, n)
            facts[i, 2], facts[i, 3] = errors(displacement, zeros, rounded)
