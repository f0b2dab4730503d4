"""Scalars that are recorded with a step: what is logged, and what optimizers have set."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from trajstore.format.arrays import DESCRIPTIONS

Scalar = float | Tensor

RATES: Final = ("lr", "step_size")
"""What is recorded of the groups of the optimizer."""

RESERVED: Final = frozenset(DESCRIPTIONS) | {
    *("step", "epoch", "iteration", "window", "layer", "basis")
}
"""Names that `Recorder.log` refuses."""


def to_scalars(values: Mapping[str, object]) -> dict[str, Scalar]:
    """Check and copy what is to be recorded with a row.

    Parameters
    ----------
    values : mapping from str to object
        What was logged.

    Returns
    -------
    dict from str to float or torch.Tensor
        The same.

    Raises
    ------
    ValueError
        If a name is taken, or a tensor has several elements.
    TypeError
        If something is not a real number.
    """
    for name in values:
        if name in RESERVED or name.startswith(("lr_", "step_size_")):
            raise ValueError(
                f"The name {name!r} is taken: the recorder records it by itself. "
                "Choose another; taken are those that begin with 'lr_' or "
                f"'step_size_' and {sorted(RESERVED)}."
            )
    return {name: to_scalar(name, value) for name, value in values.items()}


def learning_rates(optimizers: Sequence[Optimizer]) -> dict[str, Scalar]:
    """Return what is recorded of the groups of optimizers.

    Parameters
    ----------
    optimizers : sequence of torch.optim.Optimizer
        All that are recorded.

    Returns
    -------
    dict from str to float or torch.Tensor
        ``lr`` of the first group, ``lr_1`` of the second, and so on.
    """
    # Some optimizers choose a size for every step, beside what "lr" says.
    rates = {}
    groups = [group for o in optimizers for group in o.param_groups]
    for i, group in enumerate(groups):
        for name in RATES:
            if name in group:
                rates[f"{name}_{i}" if i else name] = to_scalar(name, group[name])
    return rates


def to_scalar(name: str, value: object) -> Scalar:
    """Return a number, or a copy of a tensor of one; does not wait for its device.

    Parameters
    ----------
    name : str
        For the error message.
    value : object
        What was logged.

    Returns
    -------
    float or torch.Tensor
        The same.

    Raises
    ------
    ValueError
        If it is a tensor of several elements.
    TypeError
        If it is not a real number.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"{name!r} must be one number, got a tensor of shape "
                f"{tuple(value.shape)}. Log its mean, or several names."
            )
        if not value.is_complex():
            return value.detach().clone()
    elif isinstance(value, (int, float, np.floating, np.integer, np.bool_)):
        return float(value)
    raise TypeError(
        f"{name!r} must be a real number or a tensor of one, got {value!r}."
    )


def to_floats(scalars: Mapping[str, Scalar]) -> dict[str, float]:
    """Convert what was logged; waits for the device where it lies there."""
    return {name: float(value) for name, value in scalars.items()}
