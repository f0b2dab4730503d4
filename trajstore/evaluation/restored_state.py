"""Restore a model after it was evaluated in the middle of training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def restored_state(model: nn.Module, *, parameters: bool = False) -> Iterator[None]:
    """Restore torch's random streams, and the model's modes and buffers, on exit.

    Parameters
    ----------
    model : torch.nn.Module
        The model; in the block it may change its mode and its buffers.
    parameters : bool, default: False
        Restore the parameters, too. This takes a copy of them.

    Yields
    ------
    None
    """
    kept = dict(model.named_buffers())
    if parameters:
        kept |= dict(model.named_parameters())
    copies = {name: tensor.detach().clone() for name, tensor in kept.items()}
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        now = dict(model.named_buffers()) | dict(model.named_parameters())
        with torch.no_grad():
            for name, copy in copies.items():
                now[name].copy_(copy)
