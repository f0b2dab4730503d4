"""Forget values of float64 parameters that rounding to float32 has eaten."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trajstore.format.arrays import UPDATE_TABLE, table_columns
from trajstore.format.rows import FAR_PRODUCTS, RESOLVED
from trajstore.format.run_spec import RunSpec


class Rounding:
    """Sets products with iterates to NaN in steps that float32 does not resolve.

    A row holds float32 differences of parameters, which are exact for float32 parameters only.
    """

    def __init__(self, tensors: Sequence[Tensor | None], spec: RunSpec) -> None:
        self._spec = spec
        self.has_norms = spec.basis > 0 and not spec.float64
        self.is_needed = False
        """Whether parameters of float64 are recorded in rows of float32 that have their norms."""
        self.follow(tensors)
        device = self.held[0].device
        self._n_lost = torch.zeros((), dtype=torch.int64, device=device)

    def follow(self, tensors: Sequence[Tensor | None]) -> None:
        """Follow these tensors from now on, one per layer."""
        self.held = [t for t in tensors if t is not None]

    def forget(self, row: Mapping[str, Tensor], anchor_sq: Tensor) -> None:
        """Set the products of a complete row to NaN if its update is too small."""
        tables, columns = row["tables"], table_columns(self._spec)
        update_sq, displacement_sq, dot_anchor = (
            tables[:, columns[name].start].double().sum()
            for name in ("update_sq", "displacement_sq", "displacement_dot_basis")
        )
        param_sq = displacement_sq + 2 * dot_anchor + anchor_sq.sum()
        is_lost = update_sq < RESOLVED**2 * param_sq
        # Adding 0 or NaN does not wait for an accelerator.
        change = torch.where(is_lost, torch.nan, 0.0).float()
        for name in (*FAR_PRODUCTS, *UPDATE_TABLE):
            tables[:, columns[name]] += change
        vector = row["displacement"] if self._spec.exact else row["probes"][1]
        vector += change
        self._n_lost += is_lost.to(self._n_lost.device)

    def message(self) -> str | None:
        """Return a warning of the steps that are lost, if any."""
        if n_lost := int(self._n_lost):
            return (
                f"Parameters of float64 are recorded in float32, which does not resolve {n_lost} "
                f"steps: their updates are smaller than {RESOLVED:.1e} |x|. Updates, distances "
                "and products with parameters of these steps are NaN."
            )
        return None
