"""Return the parts of parameters and gradients that this rank holds."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trajstore.format.layout import Layout
from trajstore.tracking.placement import Placement, local_part


class LocalTensors:
    """Parts of tensors, in the order of the layers that have a piece on this rank.

    Without sharding these are the tensors of all layers.
    """

    def __init__(
        self, placement: Placement, parameters: Sequence[Tensor | None]
    ) -> None:
        self._placement, self.layout = placement, placement.layout
        """Names of the layers, and shapes of their parts."""
        self._is_whole = placement.group is None
        if not self._is_whole:
            names = placement.local(placement.layout.names)
            shapes = [piece.shape for piece in placement.local(placement.pieces)]
            self.layout = Layout(tuple(names), tuple(shapes))
        self.follow(parameters)

    def follow(self, parameters: Sequence[Tensor | None]) -> None:
        """Follow other parameters of the same shapes from now on."""
        held = parameters if self._is_whole else self._placement.local(parameters)
        self._parameters: list[Any] = list(held)

    @property
    def parameters(self) -> list[Tensor | None]:
        """The parts of the parameters, as they are now."""
        return self._parameters if self._is_whole else self._parts(self._parameters)

    def of(self, vectors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Return the parts of vectors, one per layer, which are divided like the parameters."""
        return (
            vectors if self._is_whole else self._parts(self._placement.local(vectors))
        )

    @torch.no_grad()
    def _parts(self, tensors: list[Any]) -> list[Tensor | None]:
        # With gradients enabled, `to_local` is an operation that autograd notes.
        parts = map(local_part, tensors, self._parameters)
        # A collective operation may not have finished its result yet.
        return [p.wait() if hasattr(p, "wait") else p for p in parts]
