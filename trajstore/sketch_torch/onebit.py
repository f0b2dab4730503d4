"""The torch twin of `trajstore.sketch.onebit`, for one vector."""

from typing import Final

import torch
from torch import Tensor

GATHER_BITS: Final = 0x8040201008040201 - (1 << 64)
"""Times a word of eight bytes 0 or 1, each byte lands as one bit of the highest byte."""


TINY: Final = 1e-37
"""Below every magnitude whose square is not rounded to 0 in float32."""


def encode(vector: Tensor, *, signs: Tensor, scales: Tensor) -> None:
    """See `trajstore.sketch.onebit.encode`; writes to `signs` and `scales`.

    Parameters
    ----------
    vector : torch.Tensor
        float32, shape ``(size,)``; overwritten with its absolute values.
    signs : torch.Tensor
        uint8, shape ``(size / 8,)``; overwritten.
    scales : torch.Tensor
        float32, shape ``(blocks,)``; overwritten.
    """
    words = (vector >= 0).view(torch.int64)
    signs.copy_((words * GATHER_BITS) >> 56)
    blocks = vector.view(len(scales), -1)
    energy = torch.linalg.vecdot(blocks, blocks)
    # A zero block has scale 0 instead of 0 / 0; NaN passes the clamp.
    magnitude = blocks.abs_().sum(1).clamp_(min=TINY)
    torch.div(energy, magnitude, out=scales)
