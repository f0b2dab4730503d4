"""Code a vector with several bits per number in torch, as in `trajstore.sketch.levels`."""

import torch
from torch import Tensor

from trajstore.sketch import levels
from trajstore.sketch_torch import onebit
from trajstore.sketch_torch.onebit import TINY


class Encoder:
    """Codes vectors with a fixed number of bits per number on one device."""

    def __init__(self, bits: int, device: torch.device) -> None:
        self._bits = bits
        self._levels = torch.from_numpy(levels.levels(bits).copy()).to(device)
        self._borders = torch.from_numpy(levels.borders(bits).copy()).to(device)
        places = range(8 - bits, -1, -bits)
        self._places = torch.tensor([1 << place for place in places], device=device)

    def __call__(self, vector: Tensor, *, signs: Tensor, scales: Tensor) -> None:
        """Write the codes, uint8 (byte,), and scales, float32 (block,), of a vector."""
        # This may overwrite the vector.
        if self._bits == 1:
            onebit.encode(vector, signs=signs, scales=scales)
            return
        blocks = vector.view(len(scales), -1)
        energy = onebit.energy_of(blocks)
        # The clamps make the scale of a block of zeros 0. They do not change NaN.
        rms = (energy / blocks.shape[1]).sqrt_().clamp_(min=TINY).float()
        codes = torch.bucketize(blocks / rms[:, None], self._borders, right=True)
        product = torch.linalg.vecdot(blocks, self._levels[codes])
        torch.div(energy, product.clamp_(min=TINY), out=scales)
        onebit.forget_lost(scales, energy)
        signs.copy_(self._packed(codes.view(-1)))

    def _packed(self, codes: Tensor) -> Tensor:
        if self._bits > 8:
            return torch.stack([codes >> 8, codes & 255], 1).view(-1)
        return (codes.view(-1, len(self._places)) * self._places).sum(1)
