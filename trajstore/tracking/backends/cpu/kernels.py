"""The kernels of the backend for CPUs, with their arguments, sums and columns."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.format.run_spec import RunSpec
from trajstore.tracking.backends.columns import measured_columns
from trajstore.tracking.backends.cpu import measuring
from trajstore.tracking.backends.cpu.arguments import Arguments

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class KernelColumns(NamedTuple):
    """Columns of `tables`, in the form that the kernels expect."""

    before: int  # first column that is measured before the step
    n_before: int
    # Columns of `measuring.PRODUCTS` and of `measuring.BASIS_PRODUCTS`, relative to `before`.
    products: Integers  # (product,)
    basis: Integers  # (2, basis)
    after: int  # first column that is measured after the step
    n_after: int
    updates: Integers  # (product,): columns of `measuring.UPDATES`, relative to `after`
    grad_sq: int  # column of |g|^2 in a table


class Kernels(NamedTuple):
    """Kernels that run on one thread or on several, with their arguments and sums."""

    before: Callable[[int], None]
    after: Callable[[int], None]
    before_arguments: Arguments
    after_arguments: Arguments
    gradients: Integers  # (layer,): addresses that `before` reads
    sums: Doubles  # (part, layer, column)
    update_sums: Doubles  # (part, layer, column)
    no_sums: Doubles  # (part, 0, column)


def kernel_columns(spec: RunSpec) -> KernelColumns:
    """Return the columns of a run's tables."""
    before, after, grad_sq = measured_columns(spec)
    basis_starts = [before.starts[name] for name in measuring.BASIS_PRODUCTS]
    return KernelColumns(
        before=before.table_slice.start,
        n_before=before.n_columns,
        products=np.array([before.starts[name] for name in measuring.PRODUCTS]),
        basis=np.add.outer(basis_starts, np.arange(spec.basis)),
        after=after.table_slice.start,
        n_after=after.n_columns,
        updates=np.array([after.starts[name] for name in measuring.UPDATES]),
        grad_sq=grad_sq,
    )
