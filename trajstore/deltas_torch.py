"""The torch twin of `trajstore.deltas`."""

import torch
from torch import Tensor

from trajstore.deltas import LEVELS
from trajstore.layout import BLOCK


def encode(difference: Tensor) -> tuple[Tensor, Tensor]:
    """See `trajstore.deltas.encode`."""
    blocks = difference.nan_to_num(0.0, 0.0, 0.0).view(-1, BLOCK)
    scales = blocks.abs().amax(1) / LEVELS
    divisor = torch.where(scales == 0, 1.0, scales)
    codes = (blocks / divisor[:, None]).round_().clamp_(-LEVELS, LEVELS).to(torch.int8)
    return codes.view(-1), scales


def decode(codes: Tensor, scales: Tensor) -> Tensor:
    """See `trajstore.deltas.decode`."""
    return codes.view(-1, BLOCK).float().mul_(scales[:, None]).view(-1)
