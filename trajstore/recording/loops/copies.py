"""Copy the state that a step begins with, where it is measured later."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

Tensors = list[Tensor | None]


class StartCopies:
    """Copies of the parameters and gradients that a step begins with."""

    def __init__(
        self, parameters: Sequence[Tensor | None], *, with_gradients: bool = True
    ) -> None:
        self.parameters: Tensors = [copy_of(p) for p in parameters]
        self.gradients: Tensors = [
            copy_of(None if p is None or not with_gradients else p.grad)
            for p in parameters
        ]

    def have_gradients(self) -> bool:
        """Whether a gradient is not zero; `zero_grad` leaves zeros or None."""
        return any(g.count_nonzero() for g in self.gradients if g is not None)


def copy_of(tensor: Any) -> Any:
    """Return a copy of a tensor, and None for None."""
    return None if tensor is None else tensor.detach().clone()
