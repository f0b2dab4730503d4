"""How far the reference is from past ones: vectors of the basis, held as int8 codes.

The reference of a window is that of the window before and what a code of a byte per element
stands for, `trajstore.sketch.deltas`. The reference less the one of 2^j windows before is thus the
sum of the last 2^j codes, and is added up a block at a time where it is needed: no vector of
float32 is held for it.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trajstore.format.layout import BLOCK
from trajstore.sketch.deltas import n_codes
from trajstore.sketch_torch import deltas as deltas_torch
from trajstore.sketch_torch.deltas import chunks


class PastReferences:
    """Codes of the last windows, and the displacements that they add up to.

    Parameters
    ----------
    basis : int
        Vectors in the basis: the reference, and the displacements from those of 1, 2, 4, ...
        windows before.

    Attributes
    ----------
    n_vectors : int
        Number of displacements.
    n_kept : int
        How many codes are kept at most.
    addresses : numpy.ndarray
        int64, (2, code): where codes and their scales lie, the latest first.
    """

    def __init__(self, basis: int) -> None:
        self.n_vectors, self.n_kept = max(0, basis - 1), n_codes(basis)
        self._codes: list[tuple[Tensor, Tensor]] = []
        self.addresses = self._find_addresses()

    def append(self, codes: Tensor, scales: Tensor) -> None:
        """Take the code of a new window's reference; the tensors must not change.

        Parameters
        ----------
        codes, scales : torch.Tensor
            int8 of shape (size,), float32 of shape (block,); see `trajstore.sketch.deltas`.
        """
        self._codes = [(codes, scales), *self._codes][: self.n_kept]
        self.addresses = self._find_addresses()

    def _find_addresses(self) -> npt.NDArray[np.int64]:
        pairs = [(c.data_ptr(), s.data_ptr()) for c, s in self._codes]
        return np.array(pairs, np.int64).reshape(-1, 2).T.copy()

    def products(self, vectors: Tensor) -> Tensor:
        """Inner products of vectors with all displacements, block by block.

        Parameters
        ----------
        vectors : torch.Tensor
            float32, shape ``(vector, size)``, on the device of the codes.

        Returns
        -------
        torch.Tensor
            float32, shape ``(block, vector, displacement)``.
        """
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
        """Add up parts of all displacements.

        Parameters
        ----------
        elements, blocks : slice
            The part, as `trajstore.sketch_torch.deltas.chunks` yields it.
        like : torch.Tensor
            float32, on the device of the codes.

        Returns
        -------
        torch.Tensor
            float32, shape ``(vector, element)``; zeros where there are no references yet.
        """
        vectors = like.new_zeros(self.n_vectors, elements.stop - elements.start)
        for j in range(self.n_vectors):
            if j > 0:
                vectors[j] = vectors[j - 1]
            for codes, scales in self._codes[(1 << j) >> 1 : 1 << j]:
                vectors[j] += deltas_torch.decode(codes[elements], scales[blocks])
        return vectors
