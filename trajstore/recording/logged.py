"""Check and copy the scalars and the indices of examples that users log."""

from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from trajstore.format.arrays import DESCRIPTIONS, NO_SAMPLE
from trajstore.format.scaled_tables import EXPONENTS

Scalar = float | Tensor

SampleRow = npt.NDArray[np.int64]
"""Indices of examples as the store keeps them: int64 (samples,), padded with -1."""

RESERVED: Final = frozenset(DESCRIPTIONS) | {
    *("step", "epoch", "iteration", "window", "layer", "basis"),
    *EXPONENTS,
}
"""Names that `Recorder.log` refuses."""


def to_scalars(values: Mapping[str, object]) -> dict[str, Scalar]:
    """Check the names and values of scalars, and copy the values."""
    for name in values:
        if name in RESERVED or name.startswith(("lr_", "step_size_")):
            raise ValueError(
                f"The name {name!r} is reserved for the recorder's own records. Choose "
                "a name that does not begin with 'lr_' or 'step_size_' and is none of "
                f"{sorted(RESERVED)}."
            )
    return {name: to_scalar(name, value) for name, value in values.items()}


def counted(scalars: dict[str, Scalar], counts: dict[str, int]) -> dict[str, Scalar]:
    """Return scalars, and count them by name in `counts`."""
    for name in scalars:
        counts[name] = counts.get(name, 0) + 1
    return scalars


def to_scalar(name: str, value: object) -> Scalar:
    """Return a number as a float, or a copy of a one-element tensor."""
    # Copying a tensor does not wait for its device.
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"{name!r} must be one number, got a tensor of shape "
                f"{tuple(value.shape)}. Log its mean, or log its elements "
                "under several names."
            )
        # A tensor on the device "meta" has no value.
        if not (value.is_complex() or value.is_meta):
            return value.detach().clone()
    elif isinstance(value, (int, float, np.floating, np.integer, np.bool_)):
        return float(value)
    raise TypeError(
        f"{name!r} must be a real number or a tensor of one real number, got {value!r}."
    )


def rate_or_nan(rate: object) -> Scalar:
    """Return a learning rate as a float or tensor, and NaN for anything but one number."""
    # Some optimizers, such as Adafactor, choose their rates themselves and hold None.
    try:
        number: Any = rate.item() if isinstance(rate, np.ndarray) else rate
        is_number = isinstance(number, Number)
        return float(number) if is_number else to_scalar("lr", number)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def to_floats(scalars: Mapping[str, Scalar]) -> dict[str, float]:
    """Wait for the devices of tensors, and convert scalars to floats."""
    return {name: float(value) for name, value in scalars.items()}


def sample_row(indices: Tensor | npt.ArrayLike, capacity: int) -> SampleRow:
    """Check a one-dimensional list of indices, and return it as a row of samples."""
    if capacity == 0:
        raise ValueError(
            "This recorder keeps no indices of examples; make it with Recorder(..., "
            "samples=batch_size)."
        )
    values = np.asarray(
        indices.detach().cpu() if isinstance(indices, Tensor) else indices
    )
    if values.ndim != 1:
        raise ValueError(
            f"Expected a one-dimensional list of indices of examples, got shape {values.shape}."
        )
    if values.dtype.kind not in "iu" and len(values) > 0:
        raise TypeError(
            f"Expected integers, the indices of examples, got values of {values.dtype}."
        )
    if len(values) > capacity:
        raise ValueError(
            f"Got the indices of {len(values)} examples, but the recorder keeps at most "
            f"{capacity} per step; make it with Recorder(..., samples={len(values)})."
        )
    if (values < 0).any():
        raise ValueError(
            f"Expected non-negative indices of examples, got {values.min()}."
        )
    row = np.full(capacity, NO_SAMPLE)
    row[: len(values)] = values
    return row


def empty_sample_row(capacity: int) -> SampleRow:
    """Return the row of samples of a step for which no indices were logged."""
    return np.full(capacity, NO_SAMPLE)


def logged_indices(row: SampleRow | None) -> Sequence[int]:
    """Return the indices in a row of samples, without its padding."""
    indices: list[int] = [] if row is None else row[row != NO_SAMPLE].tolist()
    return indices
