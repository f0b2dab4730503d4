"""Check and copy logged scalars, and logged indices of examples."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from trajstore.format.arrays import DESCRIPTIONS, NO_SAMPLE

Scalar = float | Tensor

SampleRow = npt.NDArray[np.int64]
"""Indices of examples as the store keeps them: (samples,), then -1."""

RESERVED: Final = frozenset(DESCRIPTIONS) | {
    *("step", "epoch", "iteration", "window", "layer", "basis")
}
"""Names that `Recorder.log` refuses."""


def to_scalars(values: Mapping[str, object]) -> dict[str, Scalar]:
    """Check names and values, and copy the values."""
    for name in values:
        if name in RESERVED or name.startswith(("lr_", "step_size_")):
            raise ValueError(
                f"The name {name!r} is taken: the recorder records it itself. "
                "Choose another: not one that begins with 'lr_' or "
                f"'step_size_', and none of {sorted(RESERVED)}."
            )
    return {name: to_scalar(name, value) for name, value in values.items()}


def to_scalar(name: str, value: object) -> Scalar:
    """Return a float, or a copy of a tensor of one element without waiting for its device."""
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
    """Convert to floats; waits for the devices of tensors."""
    return {name: float(value) for name, value in scalars.items()}


def row_of_samples(indices: Tensor | npt.ArrayLike, most: int) -> SampleRow:
    """Return indices, one-dimensional, as a new row: int64 (most,), then -1."""
    if most == 0:
        raise ValueError(
            "This recorder keeps no indices of examples; make it with Recorder(..., "
            "samples=batch_size)."
        )
    values = np.asarray(
        indices.detach().cpu() if isinstance(indices, Tensor) else indices
    )
    if values.ndim != 1:
        raise ValueError(
            f"Expected a list of indices of examples, got shape {values.shape}."
        )
    if values.dtype.kind not in "iu" and len(values) > 0:
        raise TypeError(
            f"Expected indices of examples, integers, got values of {values.dtype}."
        )
    if len(values) > most:
        raise ValueError(
            f"Got the indices of {len(values)} examples, but the recorder keeps {most} of "
            f"a step; make it with Recorder(..., samples={len(values)})."
        )
    if (values < 0).any():
        raise ValueError(
            f"Expected indices of examples of at least 0, got {values.min()}."
        )
    row = np.full(most, NO_SAMPLE)
    row[: len(values)] = values
    return row


def no_samples(most: int) -> SampleRow:
    """Return the row of a step without logged indices, int64 (most,)."""
    return np.full(most, NO_SAMPLE)


def known_samples(row: SampleRow | None) -> Sequence[int]:
    """Return the indices in a row."""
    found: list[int] = [] if row is None else row[row != NO_SAMPLE].tolist()
    return found
