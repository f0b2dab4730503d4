"""Compute probes from first folds in torch, as in `trajstore.sketch.probes`."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trajstore.sketch.probes import Probes


class ProbesOnDevice:
    """Computes the probes of vectors from their first folds."""

    def __init__(self, probes: Probes, n_vectors: int, device: torch.device) -> None:
        # The row signs of the first fold, float32 (row,).
        self.row_signs = torch.from_numpy(probes.row_signs).to(device)
        # The first folds, float32 (vector, bucket), which callers fill in.
        width = probes.fold.width
        self.folds = torch.zeros((n_vectors, width), dtype=torch.float32, device=device)
        # The buckets of every probe, one column per probe, and their signs. Columns are filled up
        # with bucket 0 and signs of 0.
        buckets, signs = _columns(probes)
        self._buckets = torch.from_numpy(buckets.reshape(-1)).to(device)
        self._signs = torch.from_numpy(signs).to(device)

    def write(self, out: Tensor) -> None:
        """Write the probes to `out`, float32 (vector, probe), and clear the folds."""
        columns = self.folds.index_select(1, self._buckets)
        probes = columns.view(-1, *self._signs.shape).mul_(self._signs).sum(1)
        out[:, : probes.shape[1]].copy_(probes)
        self.folds.zero_()


def _columns(
    probes: Probes,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the buckets of every probe, int64 (row, probe), and signs, float32 (row, probe)."""
    probe, n_probes = probes.probe_of_bucket, probes.bucket_fold.width
    # Number the buckets of a probe in ascending order: sums of floats depend on the order.
    order = np.argsort(probe, kind="stable")
    first = np.searchsorted(probe[order], probe[order])
    rows = np.arange(len(probe)) - first
    shape = (int(rows.max()) + 1, n_probes)
    buckets, signs = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    buckets[rows, probe[order]] = order
    signs[rows, probe[order]] = probes.bucket_signs[order]
    return buckets, signs
