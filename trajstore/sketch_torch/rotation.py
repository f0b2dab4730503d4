"""Rotate vectors in place in torch, as in `trajstore.sketch.rotation`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trajstore.format.arrays import n_blocks
from trajstore.sketch import rotation


class Rotation:
    """Rotates vectors of a fixed size on one device."""

    def __init__(
        self, size: int, device: torch.device, *, is_mixed: bool = False
    ) -> None:
        n = n_blocks(size)
        block = size // n
        self._rounds = [
            [
                torch.from_numpy(matrix.copy()).to(device)
                for matrix in rotation.hadamard_matrices(block, is_second=is_second)
            ]
            for is_second in (False, True)
        ]
        # Allocating this buffer in every step would cost more than the arithmetic.
        self._spare = torch.empty(size, dtype=torch.float32, device=device)
        self._block = block
        self._across = None
        if is_mixed and n > 1:
            self._across = torch.from_numpy(rotation.matrix_across(n)).to(device)

    def __call__(self, vector: Tensor, signs: Tensor) -> None:
        """Rotate a vector, float32 (size,), in place with random signs (size,)."""
        half = len(vector) // 2
        vector.mul_(signs)
        self._hadamard(vector, self._rounds[0])
        if self._across is not None:
            n = len(self._across)
            mixed = self._spare.view(n, -1)
            torch.mm(self._across, vector.view(n, -1), out=mixed)
            vector.copy_(self._spare)
        vector[:half].mul_(signs[half:])
        vector[half:].mul_(signs[:half])
        self._hadamard(vector, self._rounds[1])

    def _hadamard(self, vector: Tensor, matrices: Sequence[Tensor]) -> None:
        """Apply the Hadamard transform block by block."""
        blocks = vector.split(self._block)
        spares = self._spare.split(self._block)
        for block, spare in zip(blocks, spares, strict=True):
            self._transform(block, spare, matrices)

    @staticmethod
    def _transform(block: Tensor, spare: Tensor, matrices: Sequence[Tensor]) -> None:
        source, target = block, spare
        for matrix in matrices:
            n = len(matrix)
            torch.mm(source.view(n, -1).T, matrix, out=target.view(-1, n))
            source, target = target, source
        if source is not block:
            block.copy_(source)
