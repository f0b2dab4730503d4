"""Compiled loops for CPUs that turn the folds of a step into its probes and its rotated sketch.

They draw the random signs of a step, fold the folds again to probes, and rotate a fold. The results
equal those of `trajstore.sketch` up to rounding.
"""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import float32, int8, int64, uint64, void
from numba.extending import intrinsic

from trajstore.sketch.fold import SHIFT
from trajstore.sketch.philox import random_block
from trajstore.tracking.backends.cpu.block_loops import fold_vector
from trajstore.tracking.backends.cpu.compiling import compiled, inlined, loop
from trajstore.tracking.backends.cpu.ranges import LENGTH, PLACE, START
from trajstore.tracking.backends.cpu.views import address_of, erase, part_of, smaller

Floats = npt.NDArray[np.float32]
Signs = npt.NDArray[np.int8]
"""Signs take one byte each, which leaves more of the cache to training."""

_LANES: Final = 16
"""Number of elements in a vector register, for loops that are written with LLVM vectors."""

_FLOATS, _ROWS, _FOLDS = float32[::1], float32[:, ::1], float32[:, :, ::1]
_SIGNS: Final = int8[::1]


@inlined
def _add_signed(a: Floats, signs: Signs, out: Floats) -> None:
    """Add a * signs to `out`."""
    for i in range(len(a)):
        out[i] += a[i] * np.float32(signs[i])


@loop
def _multiply(a: Floats, signs: Signs, scale: np.float32) -> None:
    """Multiply a by signs and a scale in place."""
    for i in range(len(a)):
        a[i] *= np.float32(signs[i]) * scale


def _hadamard_within(builder: Any, a: Any) -> Any:
    """Emit the Hadamard transform of the elements of one vector."""
    # Sums of floats depend on the order of the levels, and so do the bits of recordings.
    for stride in (8, 4, 2, 1):
        partners = [k ^ stride for k in range(_LANES)]
        signs = [-1.0 if k & stride else 1.0 for k in range(_LANES)]
        places = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), partners)
        partner = builder.shuffle_vector(a, a, places)
        a = builder.fadd(partner, builder.fmul(a, ir.Constant(a.type, signs)))
    return a


def _hadamard_across(builder: Any, vectors: list[Any]) -> None:
    """Emit the Hadamard transform over elements at the same place in `_LANES` vectors."""
    for stride in (2, 1, 8, 4):
        for i in range(_LANES):
            if not i & stride:
                a, b = vectors[i], vectors[i + stride]
                vectors[i], vectors[i + stride] = builder.fadd(a, b), builder.fsub(a, b)


def _transform(builder: Any, address: Any, n_vectors: int) -> None:
    """Emit the Hadamard transform of one vector, or of `_LANES` vectors, at an address."""
    pointer_type = ir.VectorType(ir.FloatType(), _LANES).as_pointer()
    offsets = [ir.Constant(address.type, 4 * _LANES * i) for i in range(n_vectors)]
    pointers = [
        builder.inttoptr(builder.add(address, o), pointer_type) for o in offsets
    ]
    vectors = [
        _hadamard_within(builder, builder.load(pointer, align=4))
        for pointer in pointers
    ]
    if n_vectors > 1:
        _hadamard_across(builder, vectors)
    for a, pointer in zip(vectors, pointers, strict=True):
        builder.store(a, pointer, align=4)


def _transform_vector(_context: Any, _address: Any) -> Any:
    """Apply the Hadamard transform to the `_LANES` elements at an address."""

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        _transform(builder, arguments[0], 1)
        return context.get_dummy_value()

    return void(int64), generate_code


def _transform_block(_context: Any, _address: Any) -> Any:
    """Apply the Hadamard transform to the `_LANES`^2 elements at an address."""

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        _transform(builder, arguments[0], _LANES)
        return context.get_dummy_value()

    return void(int64), generate_code


_hadamard_of_vector: Final = intrinsic(_transform_vector)
_hadamard_of_block: Final = intrinsic(_transform_block)


@inlined
def _hadamard(a: Floats, filled: int) -> None:
    """Apply the Hadamard transform, not normalised, in place.

    All elements after the first `filled` elements are zero; sums of only zeros are skipped.
    """
    n, stride, address = len(a), 1, address_of(a)
    if n >= _LANES * _LANES:
        stride = _LANES * _LANES
        for i in range(0, filled, stride):
            _hadamard_of_block(address + 4 * i)
    elif n >= _LANES:
        stride = _LANES
        for i in range(0, filled, stride):
            _hadamard_of_vector(address + 4 * i)
    while 4 * stride <= n:
        for i in range(0, filled, 4 * stride):
            _hadamard_of_4(
                part_of(a, i, stride),
                part_of(a, i + stride, stride),
                part_of(a, i + 2 * stride, stride),
                part_of(a, i + 3 * stride, stride),
            )
        stride *= 4
    while stride < n:
        for i in range(0, filled, 2 * stride):
            _hadamard_of_2(part_of(a, i, stride), part_of(a, i + stride, stride))
        stride *= 2


@loop
def _hadamard_of_2(a: Floats, b: Floats) -> None:
    """Apply one level of butterflies between two parts."""
    for i in range(len(a)):
        total, difference = a[i] + b[i], a[i] - b[i]
        a[i] = total
        b[i] = difference


@loop
def _hadamard_of_4(a: Floats, b: Floats, c: Floats, d: Floats) -> None:
    """Apply two levels of butterflies between four parts."""
    for i in range(len(a)):
        ac, bd = a[i] + c[i], b[i] + d[i]
        a_c, b_d = a[i] - c[i], b[i] - d[i]
        a[i] = ac + bd
        b[i] = ac - bd
        c[i] = a_c + b_d
        d[i] = a_c - b_d


def _spread_bits(_context: Any, _word: Any, _address: Any) -> Any:
    """Write 64 bits as signs, in little-endian byte order, and highest bit first in a byte."""

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        word, address = arguments
        signs, bits = (ir.VectorType(ir.IntType(n), 64) for n in (8, 1))
        is_plus = builder.bitcast(reverse_bits_in_bytes(builder, word), bits)
        plus, minus = (ir.Constant(signs, [sign] * 64) for sign in (1, -1))
        pointer = builder.inttoptr(address, signs.as_pointer())
        builder.store(builder.select(is_plus, plus, minus), pointer, align=1)
        return context.get_dummy_value()

    return void(uint64, int64), generate_code


def reverse_bits_in_bytes(builder: Any, word: Any) -> Any:
    """Emit the reversal of the bits in each byte, because vectors begin with the lowest bit."""
    reversed_word = builder.bitreverse(word)
    # A single byte cannot be swapped.
    return builder.bswap(reversed_word) if word.type.width > 8 else reversed_word


_write_signs: Final = intrinsic(_spread_bits)


@compiled(_FLOATS, int64[:, ::1], int64, _SIGNS, _FLOATS, _FLOATS)
def fold(
    vector: Floats,  # (size,)
    ranges: npt.NDArray[np.int64],  # (range, 6): see `ranges`
    width: int,
    columns: Signs,
    row_signs: Floats,
    out: Floats,  # (bucket,)
) -> None:
    """Add the fold of a vector to `out`; see `trajstore.sketch.fold`."""
    for i in range(len(ranges)):
        start, place = ranges[i, START], ranges[i, PLACE]
        stop = start + ranges[i, LENGTH]
        while start < stop:
            row = place // width
            column = place - row * width
            n = smaller(stop - start, width - column)
            fold_vector(
                part_of(vector, start, n),
                part_of(columns, SHIFT * row + column, n),
                row_signs[row],
                part_of(out, column, n),
            )
            start += n
            place += n


@compiled(uint64, uint64, uint64, _SIGNS)
def draw_signs(seed: int, role: int, step: int, signs: Signs) -> None:
    """Write the random signs of a step; see `trajstore.sketch.signs`."""
    # The number of signs is a multiple of 64.
    address, n = address_of(signs), len(signs)
    for i in range(0, n, 256):
        words = random_block(np.uint64(i // 256 + 1), step, seed, role)
        for k in range(4):
            if i + 64 * k < n:
                _write_signs(words[k], address + i + 64 * k)


@compiled(_FOLDS, int64, _SIGNS, int64, int64, int64, _ROWS)
def probe(
    folds: Floats,  # (part, fold, bucket): first folds; the parts are added up
    filled: int,  # number of buckets of the first fold that may differ from 0
    signs: Signs,  # (bucket,): fixed signs of the second fold
    n_probes: int,
    # `block` and `shift` of `trajstore.sketch.probes.Probes`.
    block: int,
    shift: int,
    out: Floats,  # (vector, probe or more): overwritten; vector i is fold i of `folds`
) -> None:
    """Compute probes from first folds, as described in `trajstore.sketch.probes`."""
    buckets, n_vectors, length = folds.shape[2], out.shape[0], out.shape[1]
    erase(out, 0, n_vectors * length)
    for part in range(folds.shape[0]):
        for vector in range(n_vectors):
            fold_start = (part * folds.shape[1] + vector) * buckets
            for first in range(0, filled, block):
                start, stop = first, smaller(first + block, filled)
                place = (first + shift * (first // block)) % n_probes
                while start < stop:
                    n = smaller(stop - start, n_probes - place)
                    _add_signed(
                        part_of(folds, fold_start + start, n),
                        part_of(signs, start, n),
                        part_of(out, vector * length + place, n),
                    )
                    start += n
                    place = 0


@inlined
def _is_odd_power(n: int) -> bool:
    """Whether a power of two has no square root that is an integer."""
    root = int(math.sqrt(n))
    return root * root != n


@compiled(_FLOATS, int64, _SIGNS, int64, int64)
def rotate(
    buckets: Floats,  # (number,): a fold; overwritten
    filled: int,  # number of buckets that may differ from 0
    signs: Signs,  # (number,): random signs of the rotation
    first_block: int,  # length of a block of the first Hadamard transform
    block: int,  # length of a block of the second Hadamard transform
) -> None:
    """Rotate a fold, as `trajstore.sketch.rotation` does."""
    n = len(buckets)
    half = n // 2
    # The second transform takes the square root of 2 that the first one leaves, see `exponent_of`.
    odd = _is_odd_power(block)
    scale = np.float32(1 / math.sqrt(first_block * (2 if odd else 1)))
    _multiply(part_of(buckets, 0, filled), signs, scale)
    length = first_block
    # One call, because every call of the transform takes long to compile.
    for turn in range(2):
        if turn == 1:
            length, filled = block, n
            scale = np.float32(1 / math.sqrt(block / (2 if odd else 1)))
            _multiply(part_of(buckets, 0, half), part_of(signs, half, half), scale)
            _multiply(part_of(buckets, half, half), signs, scale)
        for start in range(0, filled, length):
            _hadamard(part_of(buckets, start, length), smaller(length, filled - start))
