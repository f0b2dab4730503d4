"""Code an anchor as its int8 differences from the previous anchor.

Every block of `trajstore.format.layout.BLOCK` elements has its own scale: the block's largest
absolute difference, divided by 127. The rounding of the codes does no harm, because training and
analysis both use the *decoded* vector as the anchor, and the next difference is taken from that
vector. Decoding is a product in float32 and a sum in the type of the anchor, so every platform gets
the same bits.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trajstore.format.layout import BLOCK

FloatArray = npt.NDArray[np.float32]
AnyFloats = npt.NDArray[np.floating[Any]]

LEVELS: Final = 127
"""Codes run from -LEVELS to LEVELS."""

PIECE: Final = 64 * BLOCK
"""Number of elements to decode in one batch; they fit into the cache of a core."""


def encode(difference: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Return the rounded codes, int8 (size,), and scales, float32 (block,), of a difference."""
    # NaN and infinities are coded as zero.
    blocks = np.nan_to_num(difference, nan=0.0, posinf=0.0, neginf=0.0)
    blocks = blocks.reshape(-1, BLOCK)
    scales = np.abs(blocks).max(1) / np.float32(LEVELS)
    # In a block of zeros, 0 / 0 would give NaN; any nonzero divisor gives the code 0.
    divisor = np.where(scales == 0, np.float32(1), scales)
    codes = np.rint(blocks / divisor[:, None])
    # The scale of a block of denormal numbers is rounded, so a code may exceed LEVELS.
    codes = codes.clip(-LEVELS, LEVELS).astype(np.int8)
    return codes.reshape(-1), scales


def n_codes(basis: int) -> int:
    """Return the number of past codes that the displacements in a basis require."""
    # The basis consists of the anchor and its displacements from the anchors 1, 2, 4, ...
    # windows earlier. These displacements are sums of the last 1, 2, 4, ... codes.
    return 1 << (basis - 2) if basis > 1 else 0


def decode(codes: npt.NDArray[np.int8], scales: FloatArray) -> FloatArray:
    """Return the difference that the codes stand for, float32 (size,)."""
    out = np.empty(len(codes), np.float32)
    write_decoded(codes, scales, out)
    return out


def write_decoded(
    codes: npt.NDArray[np.int8], scales: FloatArray, out: FloatArray
) -> None:
    """Write the difference that the codes stand for, (size,)."""
    for start in range(0, len(out), PIECE):
        piece = slice(start, min(start + PIECE, len(out)))
        out[piece] = codes[piece]
        blocks = out[piece].reshape(-1, BLOCK)
        blocks *= scales[piece.start // BLOCK : piece.stop // BLOCK, None]


def move(
    before: AnyFloats,
    codes: npt.NDArray[np.int8],
    scales: FloatArray,
    out: AnyFloats,
    difference: FloatArray | None = None,
) -> None:
    """Add a coded difference to the previous anchor; write the sum to `out`, (size,)."""
    # The difference is written to `difference`, if given. The sum is rounded, so the anchors
    # do not tell the difference exactly.
    buffer = np.empty(PIECE, np.float32) if difference is None else difference
    for start in range(0, len(out), PIECE):
        piece = slice(start, min(start + PIECE, len(out)))
        blocks = slice(piece.start // BLOCK, piece.stop // BLOCK)
        n = piece.stop - piece.start
        decoded = buffer[:n] if difference is None else buffer[piece]
        write_decoded(codes[piece], scales[blocks], decoded)
        np.add(before[piece], decoded, out=out[piece])
