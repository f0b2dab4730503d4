"""Anchors as int8 differences to the last anchor.

Every block of `trajstore.format.layout.BLOCK` elements has a scale of its own, a 127th of the
largest difference in it. The loss of the code does no harm: the *decoded* vector is the
anchor, in training as in analysis, and the next difference is taken to it. Decoding is a
product and a sum in float32, so every platform gets the same bits.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from trajstore.format.layout import BLOCK

FloatArray = npt.NDArray[np.float32]

LEVELS: Final = 127
"""Codes run from -LEVELS to LEVELS."""

PIECE: Final = 64 * BLOCK
"""Elements to decode at once; they fit a core's cache."""


def encode(difference: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Code a difference, rounded: int8 codes (size,) and float32 scales (block,)."""
    # NaN and infinities are coded as no difference.
    blocks = np.nan_to_num(difference, nan=0.0, posinf=0.0, neginf=0.0)
    blocks = blocks.reshape(-1, BLOCK)
    scales = np.abs(blocks).max(1) / np.float32(LEVELS)
    # A zero block would divide 0 by 0; any other divisor gives the code 0.
    divisor = np.where(scales == 0, np.float32(1), scales)
    codes = np.rint(blocks / divisor[:, None])
    # The scale of denormal numbers is rounded, and may be too small.
    codes = codes.clip(-LEVELS, LEVELS).astype(np.int8)
    return codes.reshape(-1), scales


def n_codes(basis: int) -> int:
    """Return the number of codes whose sums are the displacements in a basis."""
    # The basis is the anchor, and the displacements from the anchors 1, 2, 4, ... windows
    # earlier, which are sums of the last 1, 2, 4, ... codes.
    return 1 << (basis - 2) if basis > 1 else 0


def decode(codes: npt.NDArray[np.int8], scales: FloatArray) -> FloatArray:
    """Return the coded difference, float32 (size,)."""
    blocks = codes.reshape(-1, BLOCK).astype(np.float32)
    blocks *= scales[:, None]
    return blocks.reshape(-1)


def move(
    before: FloatArray, codes: npt.NDArray[np.int8], scales: FloatArray, out: FloatArray
) -> None:
    """Add a coded difference to the anchor before; write the sum, float32 (size,)."""
    for start in range(0, len(out), PIECE):
        piece = slice(start, min(start + PIECE, len(out)))
        blocks = slice(piece.start // BLOCK, piece.stop // BLOCK)
        np.add(before[piece], decode(codes[piece], scales[blocks]), out=out[piece])
