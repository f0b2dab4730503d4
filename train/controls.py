"""Trainings that should not show what real ones show."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


class RandomLabels(Dataset[Any]):
    """Inputs of a data set with the targets of others, drawn once.

    Where examples are drawn anew whenever they are asked for, as Vaihingen's patches are,
    so are their targets.

    Parameters
    ----------
    data : Dataset
        Pairs of tensors, input and target; has a length.
    seed : int
        Chooses the permutation.
    """

    def __init__(self, data: Any, seed: int) -> None:
        self._data = data
        generator = torch.Generator().manual_seed(seed)
        self._order = torch.randperm(len(data), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, _ = self._data[index]
        _, target = self._data[self._order[index]]
        return inputs, target


@torch.no_grad()
def replace_by_noise(parameters: Iterable[nn.Parameter], seed: int, step: int) -> None:
    """Replace gradients by Gaussian noise of the same norm over all of them.

    Parameters
    ----------
    parameters : iterable of torch.nn.Parameter
        Those without a gradient are left alone.
    seed, step : int
        Choose the noise, without a trace in torch's random streams.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    generator = torch.Generator().manual_seed(((seed << 32) + step) % 2**63)
    norm = torch.stack([g.norm() for g in gradients]).norm()
    noise = [torch.randn(g.shape, generator=generator).to(g) for g in gradients]
    scale = norm / torch.stack([n.norm() for n in noise]).norm()
    for gradient, replacement in zip(gradients, noise, strict=True):
        gradient.copy_(scale * replacement)
