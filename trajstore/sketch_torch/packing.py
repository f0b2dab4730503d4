"""Pick the elements of vectors without gaps in torch, in place of folding them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trajstore.format.layout import BLOCK
from trajstore.sketch.fold import Fold
from trajstore.sketch_torch.fold import Span, Weighted
from trajstore.sketch_torch.uploads import upload


class PackOnDevice:
    """Packs the vectors in one of several buffers; used like `FoldOnDevice`."""

    def __init__(
        self,
        fold: Fold,
        buffers: Sequence[Tensor],  # each float32 (vector, size); not copied
        spans: Sequence[Span],  # places of the elements in the buffers
        elements: npt.NDArray[np.int64],  # (param,): places in the flat vector
    ) -> None:
        device = buffers[0].device
        self._fold, self._buffers = fold, buffers
        found = [_in_span(span, elements) for span in spans]
        places, local = (
            np.concatenate([np.zeros(0, np.int64), *parts])
            for parts in zip(*found, strict=True)
        )
        self._places = torch.from_numpy(places).to(device)
        self._local = torch.from_numpy(local).to(device)
        self._blocks = self._local // BLOCK
        self._signs = self._signs_of(fold)
        self._window_signs = self._signs

    def start_window(self, window: int) -> None:
        """Use the column signs of this window for weighted vectors from now on."""
        self._window_signs = self._signs_of(replace(self._fold, window=window))

    def _signs_of(self, fold: Fold) -> Tensor:
        signs = upload(fold.column_sequence, self._places.device)
        return signs.index_select(0, self._places)

    def __call__(
        self,
        buffer_index: int,  # which buffer to pack
        row_signs: Tensor,  # float32 (1,)
        out: Tensor,  # float32 (vector, bucket): the packed vectors are written to it
        weighted: Weighted | None = None,
    ) -> None:
        """Pack all vectors; also pack the weighted first vector if requested."""
        elements = self._buffers[buffer_index].index_select(1, self._local)
        out[:, self._places] = elements * (self._signs * row_signs)
        if weighted is not None:
            weights = weighted.block_weights.index_select(0, self._blocks)
            signs = self._window_signs * weighted.row_signs
            weighted.out[self._places] = elements[0] * weights * signs


def _in_span(
    span: Span, elements: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return places in packed vectors and in a buffer, for the elements in a span."""
    first, last = np.searchsorted(elements, [span.start, span.start + span.length])
    return np.arange(first, last), elements[first:last] - span.start + span.local
