"""Draw random signs that training and analysis both regenerate instead of storing them.

The generator Philox is counter-based [1]_: a key and a counter determine the bits, so the signs
of any step can be drawn without drawing the signs of earlier steps.

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
    """Purpose of random signs; each role has its own random stream."""

    FOLD = 0
    """Column signs of the sketch's fold, fresh in every window; the window number serves as the
    step. The probes use the signs of window 0 for the whole run."""
    STEP = 1
    """Signs of the sketch, fresh in every step: first for the rotation, then for the rows."""
    PROBE_ROWS = 2
    """Row signs of the probes' fold, fixed for a run."""
    PROBE_FOLD = 3
    """Signs of the fold from buckets to probes, fixed for a run."""
    WINDOW = 4
    """Signs of the sum of a window's gradients, fresh in every window: first for the rows, then for
    the rotations. The window number serves as the step."""
    DISPLACEMENTS = 5
    """Signs of the rotation of the sum of a window's displacements, fresh in every window, whose
    number serves as the step."""


def random_bytes(
    n_bytes: int, *, seed: int, role: Role, step: int = 0
) -> npt.NDArray[np.uint8]:
    """Return the random bytes of a role in a step, uint8 (n_bytes,)."""
    # Every platform gets the same bytes. 0 <= seed < 2**64; the step is 0 for roles whose signs
    # are fixed for a run.
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
    """Return the bits of `random_bytes` as signs, float32 (n,)."""
    # The length of `out` is n, rounded up to a multiple of 8.
    packed = random_bytes(-(-n // 8), seed=seed, role=role, step=step)
    return unpack_signs(packed, out)[:n]


def unpack_signs(
    packed: npt.NDArray[np.uint8], out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Return -1 for each bit 0 and 1 for each bit 1, highest bit first, (..., 8 * byte)."""
    if out is None:
        out = np.empty((*packed.shape[:-1], 8 * packed.shape[-1]), np.float32)
    # Every byte is a valid index, and mode "clip" lets NumPy write to `out` without a copy.
    rows = out.reshape(*packed.shape, 8)
    np.take(_SIGNS_OF_BYTE, packed, axis=0, out=rows, mode="clip")
    return out


_SIGNS_OF_BYTE: Final = np.subtract(
    2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1),
    1,
    dtype=np.float32,
)
"""The eight signs of each byte; looking them up is twice as fast as computing them."""
