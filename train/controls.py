"""Null models of training: random labels and random gradients."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


class RandomLabels(Dataset[Any]):
    """A data set whose targets are permuted once; a seed chooses the permutation."""

    # If the data draw a random example on every access, as Vaihingen's patches do, inputs and
    # target come from two independent draws.

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
    """Replace the labels in a step's batches with independent, uniformly random labels."""
    generator = _generator(seed, step)
    for inputs, targets in batches:
        if targets.is_floating_point():
            raise ValueError(
                f"Label noise draws classes, but the targets are of type {targets.dtype}; "
                "choose control = 'random-labels', which permutes the targets."
            )
        labels = torch.randint(n_classes, targets.shape, generator=generator)
        yield inputs, labels.to(targets)


@torch.no_grad()
def replace_by_noise(
    parameters: Iterable[nn.Parameter], seed: int, step: int, norm: float | None = None
) -> None:
    """Replace the gradients with Gaussian noise of the same norm, or of a given norm."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    generator = _generator(seed, step)
    length = torch.stack([g.norm() for g in gradients]).norm() if norm is None else norm
    noise = [torch.randn(g.shape, generator=generator).to(g) for g in gradients]
    scale = length / torch.stack([n.norm() for n in noise]).norm()
    for gradient, replacement in zip(gradients, noise, strict=True):
        gradient.copy_(scale * replacement)


def _generator(seed: int, step: int) -> torch.Generator:
    """Return a generator for one step, independent of torch's own random streams."""
    # On the CPU, torch uses the lower 32 bits of a seed only.
    mixed = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
    return torch.Generator().manual_seed(mixed)
