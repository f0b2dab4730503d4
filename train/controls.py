"""Trainings that should not show what real ones show."""

from collections.abc import Iterable, Iterator
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


def with_label_noise(
    batches: Iterable[tuple[Tensor, Tensor]], n_classes: int, seed: int, step: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw the labels of a step's batches anew, each class being as likely as another.

    Parameters
    ----------
    batches : iterable of tuple
        Inputs and targets.
    n_classes : int
        How many classes there are.
    seed, step : int
        Choose the labels, without a trace in torch's random streams.

    Yields
    ------
    tuple of torch.Tensor
        The same inputs, and targets that have nothing to do with them.

    Raises
    ------
    ValueError
        If the targets are no classes.
    """
    generator = _generator(seed, step)
    for inputs, targets in batches:
        if targets.is_floating_point():
            raise ValueError(
                f"Label noise draws classes, and the targets are of {targets.dtype}; "
                "choose control = 'random-labels', which permutes them."
            )
        drawn = torch.randint(n_classes, targets.shape, generator=generator)
        yield inputs, drawn.to(targets)


@torch.no_grad()
def replace_by_noise(
    parameters: Iterable[nn.Parameter], seed: int, step: int, norm: float | None = None
) -> None:
    """Replace gradients by a Gaussian random direction over all of them.

    Parameters
    ----------
    parameters : iterable of torch.nn.Parameter
        Those without a gradient are left alone.
    seed, step : int
        Choose the direction, without a trace in torch's random streams.
    norm : float, optional
        Length over all parameters. Default: that of the gradients.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    generator = _generator(seed, step)
    length = torch.stack([g.norm() for g in gradients]).norm() if norm is None else norm
    noise = [torch.randn(g.shape, generator=generator).to(g) for g in gradients]
    scale = length / torch.stack([n.norm() for n in noise]).norm()
    for gradient, replacement in zip(gradients, noise, strict=True):
        gradient.copy_(scale * replacement)


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(((seed << 32) + step) % 2**63)
