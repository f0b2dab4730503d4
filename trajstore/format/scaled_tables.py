"""Store products that leave the range of float32 as float32 numbers times powers of two.

Most rows need no powers of two, and their products are stored as they are. In a row that needs them
the products with equally many gradients share a power, whose exponent is a scalar of the row.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import table_columns
from trajstore.format.run_spec import RunSpec

Array = npt.NDArray[Any]

EXPONENTS: Final = (
    "exponent_of_squares",
    "exponent_of_products",
    "exponent_of_displacements",
)
"""Scalars with the exponents of products of two gradients, one gradient, and no gradient."""

TWO_GRADIENTS: Final = ("grad_sq", "grad_dot_previous")
ONE_GRADIENT: Final = ("grad_dot_displacement", "grad_dot_basis", "grad_dot_param")

LEAST: Final = float(np.finfo(np.float32).tiny)
"""The least number that float32 holds with all of its digits."""

LARGEST: Final = 127
"""The largest product of a row with powers of two is below two to this."""

MAX_EXPONENT: Final = 2048
"""Bound of exponents that are read; no product of float32 vectors has a larger one."""


def has_some_exponents(names: Collection[str]) -> bool:
    """Whether names of scalars include some exponents, but not all."""
    return 0 < len(set(EXPONENTS).intersection(names)) < len(EXPONENTS)


def in_float32(wide: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return tables (row, layer, quantity) in float32, and a mask of the rows that fit."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        narrow = wide.astype(np.float32)
    magnitude = np.abs(narrow)
    # Infinities and NaN of a diverged run stay what they are.
    fits = (magnitude >= LEAST) & (magnitude < np.inf) | (wide == 0)
    fits |= ~np.isfinite(wide)
    return narrow, fits.all((1, 2))


def scaled(wide: Array, spec: RunSpec) -> tuple[Array, list[dict[str, float]]]:
    """Return float64 tables (row, layer, quantity) as float32, with the exponents of each row."""
    tables = np.empty(wide.shape, np.float32)
    exponents: list[dict[str, float]] = [{} for _ in wide]
    for name, columns in _columns(spec).items():
        values = wide[..., columns]
        usable = np.where(np.isfinite(values), np.abs(values), 0)
        largest = usable.max((1, 2), initial=0)
        _, exponent = np.frexp(largest)
        _, fits = in_float32(values)
        exponent = np.where(fits, 0, exponent - LARGEST)
        tables[..., columns] = np.ldexp(values, -exponent[:, None, None])
        for row, of_row in zip(exponents, exponent, strict=True):
            row[name] = float(of_row)
    return tables, exponents


def unscaled(tables: Array, exponents: Mapping[str, Array], spec: RunSpec) -> Array:
    """Return the products of stored tables (row, layer, quantity), float64."""
    # `exponents` has arrays (row,), NaN for rows without powers of two.
    wide = tables.astype(np.float64)
    for name, columns in _columns(spec).items():
        known = np.nan_to_num(exponents[name], nan=0.0)
        exponent = np.clip(known, -MAX_EXPONENT, MAX_EXPONENT).astype(np.int64)
        if exponent.any():
            wide[..., columns] = np.ldexp(wide[..., columns], exponent[:, None, None])
    return wide


def unscaled_rows(
    tables: Array, scalars: Sequence[Mapping[str, float]], spec: RunSpec
) -> tuple[Array, Sequence[Mapping[str, float]]]:
    """Return the products of completed rows, and their scalars without exponents."""
    if not any(EXPONENTS[0] in row for row in scalars):
        return tables, scalars
    exponents = {
        name: np.array([row.get(name, np.nan) for row in scalars]) for name in EXPONENTS
    }
    others = [{n: v for n, v in row.items() if n not in EXPONENTS} for row in scalars]
    return unscaled(tables, exponents, spec), others


def _columns(spec: RunSpec) -> dict[str, list[int]]:
    """Return the columns of `table_columns` that share an exponent, by its name."""
    columns: dict[str, list[int]] = {name: [] for name in EXPONENTS}
    squares, products, displacements = columns.values()
    for name, where in table_columns(spec).items():
        if name in TWO_GRADIENTS:
            group = squares
        else:
            group = products if name in ONE_GRADIENT else displacements
        group += range(where.start, where.stop)
    return columns
