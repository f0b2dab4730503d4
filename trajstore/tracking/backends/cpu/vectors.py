"""Hold the last gradient, the displacement and the anchor for the kernels of CPUs."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trajstore.format.layout import BLOCK
from trajstore.sketch.vector_forms import compact_layers
from trajstore.tracking.backends.cpu import compact_measuring, measuring
from trajstore.tracking.backends.cpu.ranges import LAYER, START
from trajstore.tracking.backends.memory import huge_zeros
from trajstore.tracking.placement import Placement

Arrays = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]

NO_ADDRESSES: Final = np.zeros(0, np.int64)

PIECE: Final = 1 << 18
"""Number of elements of a displacement that is read at once, if there is no memory for all of it."""


class FloatVectors:
    """Vectors of float32 numbers."""

    before_types, after_types = measuring.BEFORE, measuring.AFTER
    """Arguments of the kernels, and their types."""

    def __init__(
        self, placement: Placement, n_parts: int, ranges: Integers, device: torch.device
    ) -> None:
        # Rows: the last gradient, the displacement and the anchor.
        self._vectors = huge_zeros(3, placement.size, device=device)
        self.rows, self.anchor = self._vectors.numpy(), self._vectors[2]
        self.pieces = [slice(0, placement.size)]
        self.displacement, self.read_ranges = self.rows[1], ranges
        """The displacement that was read last, and its ranges."""
        buffers = huge_zeros(n_parts, BLOCK, device=device).numpy()
        self.arguments: dict[str, Arrays] = {"rows": self.rows}
        """Arguments of both kernels."""
        self.arguments_before: dict[str, Arrays] = {"buffers": buffers}
        """Arguments of the kernel that measures gradients."""
        self.kernels: tuple[Any, Any] = (
            measuring.measure_before,
            measuring.measure_after,
        )
        """Kernels that measure gradients and updates."""
        self.state: tuple[Arrays, ...] = (self.rows[:2],)
        """What `StepBackend.preserve_state` restores."""

    def held(self, which: int) -> Tensor:
        """Return the last gradient or the displacement, float32 (size,)."""
        return self._vectors[which]

    def hold(self, which: int, vector: Tensor) -> None:
        """Replace the last gradient or the displacement."""
        self._vectors[which].copy_(vector)

    def pair(self, piece: slice) -> Tensor:
        """Return displacement and anchor in a piece, float32 (2, element)."""
        return self._vectors[1:, piece]


class CompactVectors:
    """Vectors of large tensors in one word per element, and those of small tensors in float32."""

    before_types = compact_measuring.COMPACT_BEFORE
    after_types = compact_measuring.COMPACT_AFTER
    """Arguments of the kernels, and their types."""

    def __init__(
        self, placement: Placement, n_parts: int, ranges: Integers, device: torch.device
    ) -> None:
        self._ranges, self._size = ranges, placement.size
        self.anchor = huge_zeros(1, placement.size, device=device)[0]
        starts = range(0, placement.size, PIECE)
        self.pieces = [slice(s, min(s + PIECE, placement.size)) for s in starts]
        # A block of a small tensor has two words for each element.
        is_compact = compact_layers(placement.layout)
        per_block = np.where(is_compact[placement.layer_of_block], BLOCK, 2 * BLOCK)
        first_words = np.cumsum(per_block) - per_block
        words = huge_zeros(int(per_block.sum()), device=device)
        places = first_words[ranges[:, START] // BLOCK] + ranges[:, START] % BLOCK
        places = np.where(is_compact[ranges[:, LAYER]], places, -1 - places)
        facts = np.zeros((len(ranges), compact_measuring.N_RANGE_FACTS))
        facts[:, -1] = 1
        self._words = words.numpy().view(np.int32), places.astype(np.int64), facts
        self._buffers = huge_zeros(4 * n_parts, BLOCK, device=device).numpy()
        self.rows = self.anchor.numpy()[None]
        self.arguments: dict[str, Arrays] = {
            "rows": self.rows,
            "buffers": self._buffers,
        } | dict(zip(("words", "places", "facts"), self._words, strict=True))
        """Arguments of both kernels."""
        self.arguments_before: dict[str, Arrays] = {}
        """Arguments of the kernel that measures gradients."""
        self.kernels: tuple[Any, Any] = (
            compact_measuring.measure_before(),
            compact_measuring.measure_after(),
        )
        """Kernels that measure gradients and updates."""
        self.state: tuple[Arrays, ...] = self._words[0], facts
        """What `StepBackend.preserve_state` restores."""
        # The piece that was read last: row 0 is the displacement, row 1 the anchor.
        self._pair = huge_zeros(2, min(PIECE, placement.size), device=device)
        self.displacement, self.read_ranges = self._pair[0].numpy(), ranges[:0]
        """The displacement that was read last, and its ranges."""

    def held(self, which: int, parameters: Integers = NO_ADDRESSES) -> Tensor:
        """Return a copy of the last gradient or the displacement, float32 (size,)."""
        # The addresses of the parameters are needed for the displacement.
        out = huge_zeros(self._size, device=self.anchor.device)
        tensors = parameters, self.rows[0], out.numpy()
        compact_measuring.read_vector(
            *self._words, self._ranges, self._buffers, which, *tensors
        )
        return out

    def hold(self, which: int, vector: Tensor) -> None:
        """Replace the last gradient or the displacement."""
        write, last = compact_measuring.write_vector, (which, vector.numpy())
        write(*self._words, self._ranges, self._buffers, *last)

    def pair(self, piece: slice, parameters: Integers) -> Tensor:
        """Return parameters minus anchor, and the anchor, in a piece, float32 (2, element)."""
        pair = self._pair[:, : piece.stop - piece.start]
        pair[0].zero_()
        pair[1] = self.anchor[piece]
        self.read_ranges = self._ranges_of(piece)
        out = pair.numpy()
        compact_measuring.subtract_anchor(parameters, self.read_ranges, out[1], out[0])
        return pair

    def _ranges_of(self, piece: slice) -> Integers:
        """Return the ranges of a piece, whose starts count from the start of the piece."""
        starts = self._ranges[:, START]
        first, last = np.searchsorted(
            starts // BLOCK, [piece.start // BLOCK, piece.stop // BLOCK]
        )
        ranges = self._ranges[first:last].copy()
        ranges[:, START] -= piece.start
        return ranges
