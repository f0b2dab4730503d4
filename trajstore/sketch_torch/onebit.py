"""Code a vector with one bit per number in torch, as in `trajstore.sketch.onebit`."""

from typing import Final

import torch
from torch import Tensor

from trajstore.sketch.onebit import LEAST_SCALE
from trajstore.sketch_torch import waiting

GATHER_BITS: Final = 0x8040201008040201 - (1 << 64)
"""Multiplier for a word whose eight bytes are 0 or 1: the highest byte of the product has these
bytes as its bits."""

LEAST_ENERGY: Final = 1e-33
"""Sums of up to 2^16 squares that are larger have not lost digits in float32."""

TINY: Final = 1e-37
"""A number below the absolute value of every number whose square is not 0 in float32."""


def encode(vector: Tensor, *, signs: Tensor, scales: Tensor) -> None:
    """Write the signs, uint8 (size / 8,), and scales, float32 (block,), of a vector."""
    # This overwrites the vector with its absolute values.
    words = (vector >= 0).view(torch.int64)
    signs.copy_((words * GATHER_BITS) >> 56)
    blocks = vector.view(len(scales), -1)
    energy = energy_of(blocks)
    # The clamp makes the scale of a block of zeros 0 instead of 0 / 0. It does not change NaN.
    magnitude = blocks.abs_().sum(1).clamp_(min=TINY)
    torch.div(energy, magnitude, out=scales)
    forget_lost(scales, energy)


def energy_of(blocks: Tensor) -> Tensor:
    """Return the sums of squares of blocks, (block,), on a CPU float64 where float32 is too small."""
    # An accelerator would have to wait for the answer.
    energy: Tensor = torch.linalg.vecdot(blocks, blocks)
    if waiting.answers_at_once(energy):
        is_exact = (energy > LEAST_ENERGY) & energy.isfinite()
        if not is_exact.all():
            doubles = blocks.double()
            energy = torch.linalg.vecdot(doubles, doubles)
    return energy


def forget_lost(scales: Tensor, energy: Tensor) -> None:
    """Set scales that float32 has lost to NaN, as `trajstore.sketch.onebit.usable`."""
    # On accelerators, such gradients have no norms either.
    if waiting.answers_at_once(scales):
        scales[(energy > 0) & ~(scales >= LEAST_SCALE)] = torch.nan
