"""Compute probes from first folds in torch, as in `trajstore.sketch.probes`."""

import torch
from torch import Tensor

from trajstore.sketch.probes import Probes


class ProbesOnDevice:
    """Computes the probes of vectors from their first folds."""

    def __init__(self, probes: Probes, n_vectors: int, device: torch.device) -> None:
        second = probes.bucket_fold
        # The row signs of the first fold, float32 (row,).
        self.row_signs = torch.from_numpy(probes.row_signs).to(device)
        self._signs = torch.from_numpy(second.column_signs.copy()).to(device)
        # The first folds, float32 (vector, bucket), which callers fill in. The last row of the
        # second fold is padded with zeros.
        self.folds = torch.zeros(
            (n_vectors, second.n_rows * second.width),
            dtype=torch.float32,
            device=device,
        )
        self._rows = self.folds.view(n_vectors, second.n_rows, second.width)

    def write(self, out: Tensor) -> None:
        """Write the probes to `out`, float32 (vector, probe), and clear the folds."""
        probes = self._rows.mul_(self._signs).sum(1)
        out[:, : probes.shape[1]].copy_(probes)
        self.folds.zero_()
