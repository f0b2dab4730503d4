"""Displacements from past anchors: vectors of the basis, held as int8 codes.

The anchor of a window is the anchor of the window before plus a decoded code of one byte per
element, `trajstore.sketch.deltas`. The anchor minus the one 2^j windows earlier is thus the sum
of the last 2^j codes. It is summed a chunk at a time where it is needed, so that no float32
vector is held for it.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trajstore.format.layout import BLOCK
from trajstore.sketch.deltas import n_codes
from trajstore.sketch_torch import deltas as deltas_torch
from trajstore.sketch_torch.deltas import chunks


class PastAnchors:
    """Codes of the last windows' anchors, and the displacements that they sum to."""

    def __init__(self, basis: int) -> None:
        # The first vector of the basis is the anchor itself; the others are displacements
        # from the anchors 1, 2, 4, ... windows before.
        self.n_vectors, self.n_kept = max(0, basis - 1), n_codes(basis)
        self._codes: list[tuple[Tensor, Tensor]] = []
        # int64 (2, code): addresses of codes and of their scales, the latest first.
        self.addresses = self._find_addresses()

    def append(self, codes: Tensor, scales: Tensor) -> None:
        """Keep the code of a new anchor, int8 (size,) and float32 (block,); not copied."""
        self._codes = [(codes, scales), *self._codes][: self.n_kept]
        self.addresses = self._find_addresses()

    def _find_addresses(self) -> npt.NDArray[np.int64]:
        pairs = [(c.data_ptr(), s.data_ptr()) for c, s in self._codes]
        return np.array(pairs, np.int64).reshape(-1, 2).T.copy()

    def products(self, vectors: Tensor) -> Tensor:
        """Return products of vectors with displacements, (block, vector, displacement)."""
        n_vectors, size = vectors.shape
        products = vectors.new_zeros(size // BLOCK, n_vectors, self.n_vectors)
        if self._codes:
            for elements, blocks in chunks(size, vectors.device):
                of_vectors = vectors[:, elements].unflatten(1, (-1, BLOCK))
                displacements = self.displacements(elements, blocks, like=vectors)
                torch.bmm(
                    of_vectors.transpose(0, 1),
                    displacements.unflatten(1, (-1, BLOCK)).permute(1, 2, 0),
                    out=products[blocks],
                )
        return products

    def displacements(self, elements: slice, blocks: slice, like: Tensor) -> Tensor:
        """Return chunks of all displacements, (vector, element), on the device of `like`."""
        # They are zero where no earlier anchor exists.
        vectors = like.new_zeros(self.n_vectors, elements.stop - elements.start)
        for j in range(self.n_vectors):
            if j > 0:
                vectors[j] = vectors[j - 1]
            for codes, scales in self._codes[(1 << j) >> 1 : 1 << j]:
                vectors[j] += deltas_torch.decode(codes[elements], scales[blocks])
        return vectors
