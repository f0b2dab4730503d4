"""Copy the state that a step begins with, where it is measured later."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

Tensors = list[Tensor | None]


class StartCopies:
    """Copies of the parameters and gradients that a step begins with."""

    def __init__(self, parameters: Sequence[Tensor | None]) -> None:
        self.parameters: Tensors = [_copy(p) for p in parameters]
        self.gradients: Tensors = [
            _copy(None if p is None else p.grad) for p in parameters
        ]

    def have_gradients(self) -> bool:
        """Whether a gradient is not zero; `zero_grad` leaves zeros or None."""
        return any(g.count_nonzero() for g in self.gradients if g is not None)


def _copy(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach().clone()
