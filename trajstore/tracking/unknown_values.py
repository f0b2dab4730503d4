"""Set the values of a measured row that are not known to NaN."""

from collections.abc import Mapping

import torch
from torch import Tensor, nan

from trajstore.format.arrays import GRADIENT_TABLE, UPDATE_TABLE, table_columns
from trajstore.format.rows import LEAST_SQUARE
from trajstore.format.run_spec import RunSpec

Row = Mapping[str, Tensor]


def forget_gradient(row: Row, spec: RunSpec) -> None:
    """Set everything that depends on the gradient to NaN."""
    _forget(row, spec, *GRADIENT_TABLE, "grad_dot_basis")
    if spec.exact:
        row["gradient"].fill_(nan)
    else:
        row["scales"].fill_(nan)
        row["probes"][0] = nan


def forget_iterate(row: Row, spec: RunSpec) -> None:
    """Set everything that depends on the parameters to NaN."""
    _forget(
        row, spec, "grad_dot_displacement", "displacement_sq", "displacement_dot_basis"
    )
    vector = row["displacement"] if spec.exact else row["probes"][1]
    vector.fill_(nan)


def forget_update(row: Row, spec: RunSpec) -> None:
    """Set everything that depends on the update to NaN."""
    _forget(row, spec, *UPDATE_TABLE)


@torch.no_grad()
def forget_squares(row: Row, spec: RunSpec) -> None:
    """Set |g|^2 and the scale of the sketch to NaN where float32 cannot hold squares of g."""
    # As `trajstore.format.rows.forget_squares`, without waiting for an accelerator; for a recording
    # that began on a CPU and is resumed on an accelerator.
    columns = table_columns(spec)
    squares = row["tables"][:, columns["grad_sq"]]
    sums = row["gradient"] if spec.exact else row["probes"][0]
    is_small = (squares.sum() < spec.n_params * LEAST_SQUARE) & (sums != 0).any()
    is_large = squares.isposinf().any() & sums.isfinite().all()
    change = torch.where(is_small | is_large, torch.nan, 0.0)
    for name in ("grad_sq", "grad_dot_previous"):
        row["tables"][:, columns[name]] += change
    if not spec.exact:
        row["scales"] += change


def _forget(row: Row, spec: RunSpec, *names: str) -> None:
    columns = table_columns(spec)
    for name in names:
        row["tables"][:, columns[name]] = nan
