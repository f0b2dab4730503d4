"""Which examples a batch was made of, as a row of the store."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from trajstore.format.arrays import NO_SAMPLE

Row = npt.NDArray[np.int64]


def row_of_samples(indices: Tensor | npt.ArrayLike, most: int) -> Row:
    """Return indices as a row of the store.

    Parameters
    ----------
    indices : torch.Tensor or array_like of int
        One-dimensional, at least 0.
    most : int
        Length of the row.

    Returns
    -------
    numpy.ndarray
        int64, shape ``(most,)``, of its own memory; -1 behind the indices.

    Raises
    ------
    ValueError
        If there are more than fit, or if they are negative or not one-dimensional.
    TypeError
        If they are not integers.
    """
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


def no_samples(most: int) -> Row | None:
    """Return the row of a step of which nothing was logged; None where none is kept."""
    return np.full(most, NO_SAMPLE) if most else None


def known_samples(row: Row | None) -> Sequence[int]:
    """Return the indices in a row."""
    found: list[int] = [] if row is None else row[row != NO_SAMPLE].tolist()
    return found
