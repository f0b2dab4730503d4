"""Choose the form in which a recorder holds the last gradient and the displacement on a CPU.

Large tensors of large networks have compact vectors: both vectors in one word of 4 bytes per parameter. They
leave the cache in every step, so what fewer bytes save makes up for the work of packing them. In small
tensors, the errors of single elements do not average out, and there is little to save.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from trajstore.format.layout import BLOCK, Layout
from trajstore.format.run_spec import RunSpec

LEAST_PARAMS: Final = 1 << 23
"""Vectors of networks with fewer parameters are not compact."""

LEAST_BLOCKS: Final = 16
"""Vectors of tensors with fewer blocks are not compact."""


def are_compact(spec: RunSpec) -> bool:
    """Whether a recorder on a CPU has compact vectors."""
    return not spec.exact and spec.n_params >= LEAST_PARAMS


def compact_layers(layout: Layout) -> npt.NDArray[np.bool_]:
    """Return which tensors have compact vectors, if any, bool (layer,)."""
    return np.asarray(layout.blocks >= LEAST_BLOCKS)


def n_words(layout: Layout) -> int:
    """Return the number of 4-byte words of both vectors, if they are compact."""
    return BLOCK * int((layout.blocks * np.where(compact_layers(layout), 1, 2)).sum())
