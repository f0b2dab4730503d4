"""Draw the random signs of `trajstore.sketch.signs` as tensors on any device."""

import torch
from torch import Tensor

from trajstore.sketch.signs import Role, random_bytes
from trajstore.sketch_torch.uploads import upload


class SignsOnDevice:
    """Draws a fixed number of signs for each optimizer step."""

    def __init__(self, count: int, device: torch.device) -> None:
        byte = torch.arange(256, device=device)[:, None]
        shift = torch.arange(7, -1, -1, device=device)
        self._table = ((byte >> shift) & 1).to(torch.float32) * 2 - 1
        self._count = count
        self._signs = self._table.new_empty(-(-count // 8), 8)

    def __call__(self, step: int, seed: int) -> Tensor:
        """Return the signs of a step, float32 (count,), which the next call overwrites."""
        packed = random_bytes(len(self._signs), seed=seed, role=Role.STEP, step=step)
        index = upload(packed, self._table.device).int()
        torch.index_select(self._table, 0, index, out=self._signs)
        return self._signs.view(-1)[: self._count]
