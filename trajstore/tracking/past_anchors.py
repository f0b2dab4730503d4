"""Keep the displacements from past anchors, which are vectors of the basis, as int8 codes.

The anchor of a window is the previous window's anchor plus a decoded code of one byte per
element (`trajstore.sketch.deltas`). The displacement from the anchor 2^j windows earlier is
therefore the sum of the last 2^j decoded codes. The sum is computed chunk by chunk when it is
needed, so that no float32 vector has to be kept for it.
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
    """Keeps the codes of recent anchors, and computes displacements from them."""

    def __init__(self, basis: int) -> None:
        # The first vector of the basis is the anchor itself; the other vectors are displacements
        # from the anchors 1, 2, 4, ... windows earlier.
        self.n_vectors, self.n_kept = max(0, basis - 1), n_codes(basis)
        self._codes: list[tuple[Tensor, Tensor]] = []
        # int64 (2, code): the addresses of the codes and of their scales, latest code first.
        self.addresses = self._find_addresses()

    def append(self, codes: Tensor, scales: Tensor) -> None:
        """Keep the codes, int8 (size,), and scales of a new anchor, without copying them."""
        self._codes = [(codes, scales), *self._codes][: self.n_kept]
        self.addresses = self._find_addresses()

    def take_oldest(self) -> Tensor | None:
        """Return the codes that the next anchor displaces, to be overwritten; None if there are none."""
        if self.n_kept == 0 or len(self._codes) < self.n_kept:
            return None
        codes, _ = self._codes.pop()
        return codes

    def _find_addresses(self) -> npt.NDArray[np.int64]:
        pairs = [(c.data_ptr(), s.data_ptr()) for c, s in self._codes]
        return np.array(pairs, np.int64).reshape(-1, 2).T.copy()

    def products(self, vectors: Tensor, first: int = 0) -> Tensor:
        """Return inner products of vectors and displacements, (block, vector, displacement)."""
        # The vectors, (vector, element), are parts of the flat vectors that begin at `first`.
        n_vectors, size = vectors.shape
        products = vectors.new_zeros(size // BLOCK, n_vectors, self.n_vectors)
        if self._codes:
            for elements, blocks in chunks(size, vectors.device):
                vector_blocks = vectors[:, elements].unflatten(1, (-1, BLOCK))
                displacements = self.displacements(elements, first, like=vectors)
                torch.bmm(
                    vector_blocks.transpose(0, 1),
                    displacements.unflatten(1, (-1, BLOCK)).permute(1, 2, 0),
                    out=products[blocks],
                )
        return products

    def displacements(self, elements: slice, first: int, like: Tensor) -> Tensor:
        """Return a chunk of each displacement, (displacement, element), on the device of `like`."""
        elements = slice(first + elements.start, first + elements.stop)
        blocks = slice(elements.start // BLOCK, elements.stop // BLOCK)
        # A displacement goes back to the first anchor if there are too few earlier anchors.
        vectors = like.new_zeros(self.n_vectors, elements.stop - elements.start)
        for j in range(self.n_vectors):
            if j > 0:
                vectors[j] = vectors[j - 1]
            for codes, scales in self._codes[(1 << j) >> 1 : 1 << j]:
                vectors[j] += deltas_torch.decode(codes[elements], scales[blocks])
        return vectors
