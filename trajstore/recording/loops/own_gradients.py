"""Collect the gradients that several optimizers step with, each with its own.

Optimizers that step in turn, such as those of generators and discriminators, may each make a new
gradient before they step. The gradient of a row then consists of the gradients that the
optimizers step with, and its iterate holds the parameters from which the first of them steps.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from trajstore.recording.loops.copies import StartCopies, copy_of
from trajstore.tracking.scaling import scaling_at_step, unscaled


class OwnGradients:
    """Gradients of the optimizers that have stepped in a row, and the parameters before."""

    def __init__(self) -> None:
        self.is_on = False
        """Whether rows are recorded in this way."""
        self.is_open = False
        """Whether such a row has begun."""
        self._copies: StartCopies | None = None
        self._gradients: list[Tensor | None] = []
        self._layers: dict[int, int] = {}
        # The optimizer whose gradient each layer has.
        self._owners: dict[int, int] = {}
        self._n_calls: dict[int, int] = {}
        self._is_known = True

    def begin(self, parameters: Sequence[Tensor | None], optimizer: Optimizer) -> None:
        """Begin a row: copy the parameters, and the gradients of the first optimizer."""
        self._copies, self.is_open = StartCopies(parameters, with_gradients=False), True
        self._gradients = [None] * len(parameters)
        self._layers = {id(p): i for i, p in enumerate(parameters) if p is not None}
        self._owners, self._n_calls, self._is_known = {}, {}, True
        self.add(optimizer)

    def add(self, optimizer: Optimizer) -> None:
        """Copy the gradients that an optimizer is about to step with."""
        # An optimizer with a closure is noted before its step and after every evaluation; the
        # first evaluation makes the gradient that the step begins with.
        owner = id(optimizer)
        self._n_calls[owner] = n_calls = self._n_calls.get(owner, 0) + 1
        if n_calls > 2:
            return
        held = [
            p
            for group in optimizer.param_groups
            for p in group["params"]
            if id(p) in self._layers
        ]
        found: list[Tensor | None] = [p.grad for p in held]
        if (scaling := scaling_at_step(optimizer, [optimizer])) is not None:
            found = unscaled(found, held, scaling)
        for p, gradient in zip(held, found, strict=True):
            layer = self._layers[id(p)]
            if self._owners.setdefault(layer, owner) != owner:
                # Two optimizers step with gradients of one tensor.
                self._is_known = False
            self._gradients[layer] = copy_of(gradient)

    def end(self) -> tuple[StartCopies, list[Tensor | None] | None]:
        """End a row; return its parameters and gradients, None if these are not known."""
        copies, self._copies, self.is_open = self._copies, None, False
        gradients, self._gradients = self._gradients, []
        assert copies is not None
        return copies, gradients if self._is_known else None


def changed_message(optimizer: Optimizer, n_optimizers: int, step: int) -> str:
    """Return a warning of an optimizer whose gradients are not those of the row."""
    return (
        f"The gradients of {type(optimizer).__name__} have changed since they were "
        f"recorded, when the first of {n_optimizers} optimizers was about to step. The gradient "
        f"of step {step} is not known, and is recorded as NaN. From the next step on, rows hold "
        "the gradient that each optimizer steps with, 0 for optimizers that do not step, and the "
        "parameters from which the first optimizer steps; earlier rows hold the gradients at the "
        "start of their steps. To record each optimizer by itself, make a recorder for each."
    )
