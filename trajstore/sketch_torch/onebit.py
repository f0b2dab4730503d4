"""Code a vector with one bit per number in torch, as in `trajstore.sketch.onebit`."""

from typing import Final

import torch
from torch import Tensor

GATHER_BITS: Final = 0x8040201008040201 - (1 << 64)
"""Multiplier for a word whose eight bytes are 0 or 1: the highest byte of the product has these
bytes as its bits."""

TINY: Final = 1e-37
"""A number below the absolute value of every number whose square is not 0 in float32."""


def encode(vector: Tensor, *, signs: Tensor, scales: Tensor) -> None:
    """Write the signs, uint8 (size / 8,), and scales, float32 (block,), of a vector."""
    # This overwrites the vector with its absolute values.
    words = (vector >= 0).view(torch.int64)
    signs.copy_((words * GATHER_BITS) >> 56)
    blocks = vector.view(len(scales), -1)
    energy = torch.linalg.vecdot(blocks, blocks)
    # The clamp makes the scale of a block of zeros 0 instead of 0 / 0. It does not change NaN.
    magnitude = blocks.abs_().sum(1).clamp_(min=TINY)
    torch.div(energy, magnitude, out=scales)
