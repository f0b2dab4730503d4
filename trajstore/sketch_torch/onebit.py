"""One-bit codes of one vector in torch, as in `trajstore.sketch.onebit`."""

from typing import Final

import torch
from torch import Tensor

GATHER_BITS: Final = 0x8040201008040201 - (1 << 64)
"""Factor of a word of eight bytes 0 or 1 that gathers them as bits of the highest byte."""

TINY: Final = 1e-37
"""Less than every magnitude whose square is not 0 in float32."""


def encode(vector: Tensor, *, signs: Tensor, scales: Tensor) -> None:
    """Write the signs, uint8 (size / 8,), and scales, float32 (block,), of a vector."""
    # The vector is overwritten with its absolute values.
    words = (vector >= 0).view(torch.int64)
    signs.copy_((words * GATHER_BITS) >> 56)
    blocks = vector.view(len(scales), -1)
    energy = torch.linalg.vecdot(blocks, blocks)
    # A zero block has scale 0 instead of 0 / 0; NaN passes the clamp.
    magnitude = blocks.abs_().sum(1).clamp_(min=TINY)
    torch.div(energy, magnitude, out=scales)
