"""Codes of anchors in torch, as in `trajstore.sketch.deltas`."""

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from trajstore.format.layout import BLOCK
from trajstore.sketch.deltas import LEVELS

CHUNK: Final = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Elements to code or decode at once: few enough for a CPU's cache, many enough to keep
the number of kernels low on an accelerator."""


def chunks(size: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Yield chunks of a vector, as elements and as blocks."""
    blocks = CHUNK.get(device.type, CHUNK["cuda"]) // BLOCK
    for first in range(0, size // BLOCK, blocks):
        last = min(first + blocks, size // BLOCK)
        yield slice(first * BLOCK, last * BLOCK), slice(first, last)


def block_scales(difference: Tensor) -> Tensor:
    """Return the scales of a difference (size,), float32 (block,)."""
    return _blocks(difference).abs_().amax(1) / LEVELS


def encode(difference: Tensor, scales: Tensor) -> Tensor:
    """Return the codes of a difference (size,), int8, given the scales."""
    divisor = scales.masked_fill(scales == 0, 1.0)
    codes = (_blocks(difference) / divisor[:, None]).round_().clamp_(-LEVELS, LEVELS)
    return codes.to(torch.int8).view(-1)


def _blocks(difference: Tensor) -> Tensor:
    """Return a copy with 0 for NaN and infinities, (block, element)."""
    return difference.nan_to_num(0.0, 0.0, 0.0).view(-1, BLOCK)


def decode(codes: Tensor, scales: Tensor) -> Tensor:
    """Return the coded difference, float32 (size,)."""
    return codes.view(-1, BLOCK).float().mul_(scales[:, None]).view(-1)
