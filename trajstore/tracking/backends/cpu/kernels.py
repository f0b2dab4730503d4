"""The kernels of the backend for CPUs, with their arguments, sums and columns."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.format.run_spec import RunSpec
from trajstore.tracking.backends.columns import measured_columns
from trajstore.tracking.backends.cpu import measuring
from trajstore.tracking.backends.cpu.arguments import Arguments
from trajstore.tracking.backends.cpu.compiling import on_threads
from trajstore.tracking.backends.cpu.folding import Folding
from trajstore.tracking.backends.cpu.ranges import bounds_of
from trajstore.tracking.backends.cpu.vectors import CompactVectors, FloatVectors
from trajstore.tracking.backends.threads import preserve_torch_threads

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

NO_ENERGY: Final = np.zeros(0)


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
    # (1,): where `before` finds the addresses of the tables of the row and of the last row
    tables: Integers
    last_tables: Integers


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


def prepared_kernels(
    spec: RunSpec,
    folding: Folding,
    n_parts: int,
    *,
    n_tensors: int,
    is_direct: bool,  # whether sums are written to the tables of rows
    ranges: Integers,
    vectors: CompactVectors | FloatVectors,
    past: Integers,
    window_folds: Floats,
    energies: Floats,
    squares: Floats,
) -> Kernels:
    """Return the kernels with arguments that stay the same in many steps."""
    layers, columns = len(spec.names), kernel_columns(spec)
    no_addresses, gradients = np.zeros((2, n_tensors), np.int64)
    n_before, n_after, first, first_after = columns.n_before, columns.n_after, 0, 0
    if is_direct:
        n_before = n_after = columns.after + columns.n_after
        first, first_after = columns.before, columns.after
    sums = np.zeros((n_parts, layers, n_before))
    no_sums = np.zeros((n_parts, 0, n_after))
    bounds = bounds_of(ranges, n_parts)
    shared: dict[str, Any] = {
        "bounds": bounds,
        "parameters": no_addresses,
        "ranges": ranges,
        **vectors.arguments,
    }
    before = Arguments(
        vectors.before_types,
        **shared,
        gradients=gradients,
        past=past,
        sums=sums,
        columns=columns.products + first,
        basis_columns=columns.basis + first,
        width=folding.width,
        filled=folding.filled,
        sketch_columns=folding.probe_columns,
        probe_columns=folding.probe_columns,
        probe_signs=folding.probe_rows,
        row_signs=folding.row_signs,
        weights=np.ones(layers, np.float32),
        folds=folding.folds,
        window_signs=np.zeros(0, np.float32),
        window_folds=window_folds,
        energies=energies,
        squares=squares,
        update_sums=no_sums,
        update_columns=columns.updates + first_after,
        energy=NO_ENERGY,
        energy_column=columns.grad_sq,
        **vectors.arguments_before,
    )
    after = Arguments(
        vectors.after_types,
        **shared | {"bounds": np.zeros_like(bounds)},
        sums=np.zeros((n_parts, layers, columns.n_after)),
        columns=columns.updates,
        checks=np.zeros((n_parts, layers), np.int64),
    )
    measure_before, measure_after = vectors.kernels
    run_after = on_threads(n_parts, measure_after)
    if n_parts > 1:
        # Start threads, and compile what they need, before the first step: without blocks.
        with preserve_torch_threads():
            run_after(after.address)
    after.set("bounds", bounds)
    return Kernels(
        on_threads(n_parts, measure_before),
        run_after,
        before,
        after,
        gradients,
        sums,
        update_sums=np.zeros((n_parts, layers, n_after)),
        no_sums=no_sums,
        tables=before.place_of("sums"),
        last_tables=before.place_of("update_sums"),
    )
