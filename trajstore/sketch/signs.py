"""Random signs that training and analysis regenerate alike; none is stored.

Philox is counter-based: a key and a counter determine the bits, so the signs of any
step are drawn without drawing those of the steps before it [1]_.

References
----------
.. [1] J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as
   easy as 1, 2, 3", SC 2011. DOI 10.1145/2063384.2063405.
"""

from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt


class Role(IntEnum):
    """What signs are for; each role has a stream of its own."""

    FOLD = 0
    """Column signs of the sketch's fold, fresh in every window, which counts as the step;
    those of the first window are the probes' for the whole run."""
    STEP = 1
    """Signs of the sketch that are fresh in every step: of the rotation, then rows."""
    PROBE_ROWS = 2
    """Row signs of the probes' fold, fixed for a run."""
    PROBE_FOLD = 3
    """Signs of the fold from buckets to probes, fixed for a run."""


def random_bytes(
    n_bytes: int, *, seed: int, role: Role, step: int = 0
) -> npt.NDArray[np.uint8]:
    """Random bytes of one role in one step.

    Parameters
    ----------
    n_bytes : int
        How many.
    seed : int
        The run's seed, 0 <= seed < 2**64.
    role : Role
        Selects the stream.
    step : int, default: 0
        Optimizer step; 0 for roles whose signs are fixed for a run.

    Returns
    -------
    numpy.ndarray
        uint8, shape ``(n_bytes,)``; the same on every platform.
    """
    generator = np.random.Philox(
        key=np.array([seed, role], np.uint64),
        counter=np.array([0, 0, 0, step], np.uint64),
    )
    words = np.asarray(generator.random_raw(-(-n_bytes // 8)))
    return words.astype("<u8", copy=False).view(np.uint8)[:n_bytes]


def random_signs(
    n: int,
    *,
    seed: int,
    role: Role,
    step: int = 0,
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Random signs of one role in one step, the bits of `random_bytes`.

    Parameters
    ----------
    n : int
        How many.
    seed : int
        The run's seed.
    role : Role
        Selects the stream.
    step : int, default: 0
        Optimizer step.
    out : numpy.ndarray, optional
        Where they go, float32; as long as `n` rounded up to whole bytes of bits.

    Returns
    -------
    numpy.ndarray
        float32, shape ``(n,)``, -1 for a bit 0 and 1 for a bit 1, the highest bit of a
        byte first.
    """
    packed = random_bytes(-(-n // 8), seed=seed, role=role, step=step)
    return unpack_signs(packed, out)[:n]


def unpack_signs(
    packed: npt.NDArray[np.uint8], out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Return -1 for every bit 0 and 1 for every bit 1, the highest bit of a byte first.

    Parameters
    ----------
    packed : numpy.ndarray
        uint8, shape ``(..., byte)``.
    out : numpy.ndarray, optional
        Where they go, float32, shape ``(..., 8 byte)``.

    Returns
    -------
    numpy.ndarray
        float32, shape ``(..., 8 byte)``.
    """
    if out is None:
        out = np.empty((*packed.shape[:-1], 8 * packed.shape[-1]), np.float32)
    # Every byte has its signs; told so, NumPy writes where it should without a copy.
    rows = out.reshape(*packed.shape, 8)
    np.take(_SIGNS_OF_BYTE, packed, axis=0, out=rows, mode="clip")
    return out


_SIGNS_OF_BYTE: Final = np.subtract(
    2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1),
    1,
    dtype=np.float32,
)
"""Eight signs for each byte; to look them up is twice as fast as to compute them."""
