"""Rotate vectors in place in torch, as in `trajstore.sketch.rotation`."""

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
        self._matrices = [
            torch.from_numpy(rotation.hadamard_matrix(n)).to(device)
            for n in rotation.factors(block)
        ]
        # Allocating this buffer in every step would cost more than the arithmetic.
        self._spare = torch.empty(size, dtype=torch.float32, device=device)
        self._block = block
        across = rotation.hadamard_matrix(n) if is_mixed and n > 1 else None
        self._across = None if across is None else torch.from_numpy(across).to(device)

    def __call__(self, vector: Tensor, signs: Tensor) -> None:
        """Rotate a vector, float32 (size,), in place with random signs (size,)."""
        half = len(vector) // 2
        vector.mul_(signs)
        self._hadamard(vector)
        if self._across is not None:
            n = len(self._across)
            mixed = self._spare.view(n, -1)
            torch.mm(self._across, vector.view(n, -1), out=mixed)
            vector.copy_(self._spare)
        vector[:half].mul_(signs[half:])
        vector[half:].mul_(signs[:half])
        self._hadamard(vector)

    def _hadamard(self, vector: Tensor) -> None:
        """Apply the Hadamard transform block by block."""
        blocks = vector.split(self._block)
        spares = self._spare.split(self._block)
        for block, spare in zip(blocks, spares, strict=True):
            self._transform(block, spare)

    def _transform(self, block: Tensor, spare: Tensor) -> None:
        source, target = block, spare
        for matrix in self._matrices:
            n = len(matrix)
            torch.mm(source.view(n, -1).T, matrix, out=target.view(-1, n))
            source, target = target, source
        if source is not block:
            block.copy_(source)
