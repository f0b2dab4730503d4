"""The torch twin of `trajstore.sketch.probes`, from the first fold on."""

import torch
from torch import Tensor

from trajstore.sketch.probes import Probes


class ProbesOnDevice:
    """Folds first folds again.

    Parameters
    ----------
    probes : Probes
        What to compute.
    n_vectors : int
        Vectors probed together.
    device : torch.device
        Where they live.

    Attributes
    ----------
    row_signs : torch.Tensor
        Row signs of the first fold, float32 of (row,).
    folds : torch.Tensor
        float32, (vector, bucket): to be filled with first folds.
    """

    def __init__(self, probes: Probes, n_vectors: int, device: torch.device) -> None:
        second = probes.bucket_fold
        self.row_signs = torch.from_numpy(probes.row_signs).to(device)
        self._signs = torch.from_numpy(second.column_signs.copy()).to(device)
        # The last row of the second fold is padded with zeros.
        self.folds = torch.zeros(
            (n_vectors, second.n_rows * second.width),
            dtype=torch.float32,
            device=device,
        )
        self._rows = self.folds.view(n_vectors, second.n_rows, second.width)

    def write(self, out: Tensor) -> None:
        """Write the probes to `out`, float32 of (vector, probe), and clear the folds."""
        probes = self._rows.mul_(self._signs).sum(1)
        out[:, : probes.shape[1]].copy_(probes)
        self.folds.zero_()
