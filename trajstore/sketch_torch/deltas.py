"""Code and decode anchors in torch, as `trajstore.sketch.deltas` does in NumPy."""

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from trajstore.format.layout import BLOCK
from trajstore.sketch.deltas import LEVELS

CHUNK: Final = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Number of elements to code or decode in one batch, by type of device: few enough for the
cache of a CPU, and enough to keep the number of kernels on an accelerator low."""


def chunks(size: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Yield the chunks of a vector, each as a range of elements and a range of blocks."""
    blocks = CHUNK.get(device.type, CHUNK["cuda"]) // BLOCK
    for first in range(0, size // BLOCK, blocks):
        last = min(first + blocks, size // BLOCK)
        yield slice(first * BLOCK, last * BLOCK), slice(first, last)


def block_scales(difference: Tensor) -> Tensor:
    """Return the scales of a difference (size,), float32 (block,)."""
    return _blocks(difference).abs_().amax(1) / LEVELS


def encode(difference: Tensor, scales: Tensor) -> Tensor:
    """Return the codes of a difference (size,) for these scales, int8 (size,)."""
    divisor = scales.masked_fill(scales == 0, 1.0)
    codes = (_blocks(difference) / divisor[:, None]).round_().clamp_(-LEVELS, LEVELS)
    return codes.to(torch.int8).view(-1)


def _blocks(difference: Tensor) -> Tensor:
    """Return a copy as blocks, (block, element), with 0 instead of NaN and infinities."""
    return difference.nan_to_num(0.0, 0.0, 0.0).view(-1, BLOCK)


def decode(codes: Tensor, scales: Tensor) -> Tensor:
    """Return the difference that the codes stand for, float32 (size,)."""
    return codes.view(-1, BLOCK).float().mul_(scales[:, None]).view(-1)
