"""Turn measured steps into stored rows, and encode and decode their probes."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import (
    GRADIENT_TABLE,
    UPDATE_TABLE,
    n_blocks,
    table_columns,
)
from trajstore.format.run_spec import RunSpec
from trajstore.format.scaled_tables import in_float32, scaled

Array = npt.NDArray[Any]

LOST: Final = 64
"""Products with an iterate are not known if the anchor is this many times |x| away from x."""

RESOLVED: Final = 64 * 2.0**-24
"""Least |u| / |v| that float32 numbers of the size of v resolve, to about two percent."""

LEAST_SQUARE: Final = 1e-38
"""Squares of smaller numbers lose digits in float32; its least normal number is a little larger."""

FAR_PRODUCTS: Final = (
    *("grad_dot_displacement", "grad_dot_basis", "displacement_sq"),
    *("displacement_dot_basis", "update_dot_displacement"),
)
"""Products with the displacement from the anchor, and with the anchor."""


def measured_arrays(spec: RunSpec, size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the dtype and shape of each array measured in a step, by name."""
    # Every step has tables (layer, quantity). An exact recording adds gradient and
    # displacement (param,); any other recording adds signs, scales and probes (2, probe).
    n_measured = table_columns(spec)["update_dot_displacement"].stop
    real = spec.float_type
    wide = "float64" if spec.scaled else real
    arrays = {"tables": (wide, (len(spec.names), n_measured))}
    if spec.exact:
        return arrays | dict.fromkeys(("gradient", "displacement"), (real, (size,)))
    return arrays | {
        "signs": ("uint8", (spec.sketch_bits // 8,)),
        "scales": (real, (n_blocks(spec.sketch_numbers),)),
        "probes": (real, (2, spec.probes)),
    }


def complete_rows(
    measured: Mapping[str, Array],
    places: Sequence[tuple[int, int, int]],
    anchor_sq: Array,
    scalars: Sequence[Mapping[str, float]],
    spec: RunSpec,
    *,
    are_updates: bool = False,  # whether updates were measured as if they were gradients
) -> tuple[dict[str, Array], list[dict[str, float]]]:
    """Return the arrays and scalars for `trajstore.store.row_table.RowTable.append`."""
    # `measured` holds `measured_arrays` with a leading dimension step; `places` holds the
    # epoch, iteration and window of each step; `anchor_sq` is the squared norm of the
    # anchor, float64 (step, layer).
    if not spec.scaled:
        return _completed(
            measured, places, anchor_sq, scalars, spec, are_updates=are_updates
        )
    narrow, fits = in_float32(measured["tables"])
    rows, completed = _completed(
        {**measured, "tables": narrow},
        places,
        anchor_sq,
        scalars,
        spec,
        are_updates=are_updates,
    )
    if fits.all():
        return rows, completed
    large = np.flatnonzero(~fits).tolist()
    wide_rows, wide_scalars = _completed(
        {name: array[large] for name, array in measured.items()},
        [places[i] for i in large],
        anchor_sq[large],
        [scalars[i] for i in large],
        spec,
        are_updates=are_updates,
    )
    wide_rows["tables"], exponents = scaled(wide_rows["tables"], spec)
    for name, array in wide_rows.items():
        # Arrays may share the memory of tensors.
        rows[name] = rows[name].copy()
        rows[name][large] = array
    for i, of_row, exponent in zip(large, wide_scalars, exponents, strict=True):
        completed[i] = of_row | exponent
    return rows, completed


def _completed(
    measured: Mapping[str, Array],
    places: Sequence[tuple[int, int, int]],
    anchor_sq: Array,
    scalars: Sequence[Mapping[str, float]],
    spec: RunSpec,
    *,
    are_updates: bool,
) -> tuple[dict[str, Array], list[dict[str, float]]]:
    """Return complete rows, with tables of the type of the measured tables."""
    rows = dict(measured)
    forget_eaten_updates(rows, anchor_sq, spec, are_updates=are_updates)
    forget_far_iterates(rows, anchor_sq, spec)
    if not spec.scaled:
        forget_squares(rows, spec)
    rows["epoch"], rows["iteration"], rows["window"] = np.array(places, np.int32).T
    rows["tables"] = complete_tables(rows["tables"], anchor_sq, spec)
    if not spec.exact:
        rows |= encode_probes(rows.pop("probes"))
    step_norms = norms(rows["tables"], spec)
    completed = [
        {**row, **{name: float(values[i]) for name, values in step_norms.items()}}
        for i, row in enumerate(scalars)
    ]
    return rows, completed


def complete_tables(measured: Array, anchor_sq: Array, spec: RunSpec) -> Array:
    """Append |x|^2 and <g, x> to measured products, (step, layer, quantity)."""
    # The iterate x is the anchor r plus the displacement a, so |x|^2 = |a|^2 + 2 <a, r> +
    # |r|^2 and <g, x> = <g, a> + <g, r>. Without a basis, products with r are not measured.
    if not spec.basis:
        return measured
    columns = table_columns(spec)
    table = measured.astype(np.float64)
    grad_dot_anchor = table[..., columns["grad_dot_basis"].start]
    displacement_dot_anchor = table[..., columns["displacement_dot_basis"].start]
    displacement_sq = table[..., columns["displacement_sq"].start]
    grad_dot_displacement = table[..., columns["grad_dot_displacement"].start]
    # The values of a diverging run may overflow; they are recorded unchanged.
    with np.errstate(invalid="ignore", over="ignore"):
        param_sq = displacement_sq + 2 * displacement_dot_anchor + anchor_sq
        derived = [np.maximum(param_sq, 0), grad_dot_displacement + grad_dot_anchor]
        return np.concatenate(
            [measured, np.stack(derived, -1)], -1, dtype=measured.dtype
        )


def is_far(tables: Array, anchor_sq: float, spec: RunSpec, times: float) -> Array:
    """Whether |x - r| > times |x| in measured tables (..., layer, quantity): r is far from x."""
    # After a blow-up that is taken back, the anchor r may be 10^5 times as far from the origin as
    # the iterate x. The difference x - r then lacks the last digits of x.
    columns = table_columns(spec)
    displacement_sq, dot_anchor = (
        tables[..., columns[name].start].sum(-1, dtype=np.float64)
        for name in ("displacement_sq", "displacement_dot_basis")
    )
    with np.errstate(invalid="ignore", over="ignore"):
        param_sq = displacement_sq + 2 * dot_anchor + anchor_sq
        far: Array = displacement_sq > times**2 * param_sq
    return far


def forget_far_iterates(
    rows: dict[str, Array], anchor_sq: Array, spec: RunSpec
) -> None:
    """Set products with iterates to NaN where too many digits of the iterate are lost."""
    if not spec.basis:
        return
    far = is_far(rows["tables"], anchor_sq.sum(-1), spec, LOST)
    if not far.any():
        return
    columns = table_columns(spec)
    rows["tables"] = rows["tables"].copy()
    for name in FAR_PRODUCTS:
        rows["tables"][far, :, columns[name]] = np.nan
    vectors = "displacement" if spec.exact else "probes"
    rows[vectors] = rows[vectors].copy()
    if spec.exact:
        rows["displacement"][far] = np.nan
    else:
        rows["probes"][far, 1] = np.nan


def forget_eaten_updates(
    rows: dict[str, Array], anchor_sq: Array, spec: RunSpec, *, are_updates: bool
) -> None:
    """Set updates to NaN that are too small next to the distance of a far anchor."""
    # An update is the difference of two displacements x - r, which are rounded where |r| is larger
    # than |x|.
    if not spec.basis or spec.float64:
        return
    columns, tables = table_columns(spec), rows["tables"]
    name = "grad_sq" if are_updates else "update_sq"
    update_sq, displacement_sq = (
        tables[..., columns[n].start].sum(-1, dtype=np.float64)
        for n in (name, "displacement_sq")
    )
    eaten = is_far(tables, anchor_sq.sum(-1), spec, 2)
    with np.errstate(invalid="ignore", over="ignore"):
        eaten &= update_sq < RESOLVED**2 * displacement_sq
    if not eaten.any():
        return
    changed = {"tables": tables.copy()}
    for n in (*GRADIENT_TABLE, "grad_dot_basis") if are_updates else UPDATE_TABLE:
        changed["tables"][eaten, :, columns[n]] = np.nan
    if are_updates:
        sketch = ("gradient",) if spec.exact else ("scales", "probes")
        changed |= {n: rows[n].copy() for n in sketch}
        for n in sketch:
            where = (eaten, 0) if n == "probes" else eaten
            changed[n][where] = np.nan
    rows |= changed


def forget_squares(rows: dict[str, Array], spec: RunSpec) -> None:
    """Set |g|^2 and the scale of the sketch to NaN where float32 cannot hold squares of g."""
    grad_sq = table_columns(spec)["grad_sq"].start
    squares = rows["tables"][..., grad_sq]
    total = squares.sum(-1, dtype=np.float64)
    # Sums of elements, which have no squares, tell whether the gradient is 0, and whether finite.
    sums = rows["gradient"] if spec.exact else rows["probes"][:, 0]
    is_small = (total < spec.n_params * LEAST_SQUARE) & (sums != 0).any(-1)
    is_large = np.isposinf(squares).any(-1) & np.isfinite(sums).all(-1)
    if spec.float64 or not (lost := is_small | is_large).any():
        return
    rows["tables"] = rows["tables"].copy()
    for name in ("grad_sq", "grad_dot_previous"):
        rows["tables"][lost, :, table_columns(spec)[name]] = np.nan
    if not spec.exact:
        rows["scales"] = np.where(lost[:, None], np.float32(np.nan), rows["scales"])


def n_out_of_range(rows: Mapping[str, Array], spec: RunSpec) -> int:
    """Return the number of rows whose gradients are finite, but have no norms or no sketches."""
    columns, tables = table_columns(spec), rows["tables"]
    squares, products = (
        tables[..., columns[name].start]
        for name in ("grad_sq", "grad_dot_displacement")
    )
    is_lost = np.isnan(squares).all(-1)
    if not spec.exact:
        is_lost |= np.isnan(rows["scales"]).any(-1)
    return int((is_lost & np.isfinite(products).all(-1)).sum())


def norms(tables: Array, spec: RunSpec) -> dict[str, Array]:
    """Return each norm over all layers, float64 (step,), by the name of its scalar."""
    columns = table_columns(spec)
    squares = {"grad_norm": "grad_sq", "update_norm": "update_sq"}
    squares["param_norm"] = "param_sq"
    return {
        name: np.sqrt(tables[..., columns[square].start].sum(-1, dtype=np.float64))
        for name, square in squares.items()
        if square in columns
    }


def encode_probes(probes: Array) -> dict[str, Array]:
    """Return probes (step, 2, probe) of gradients and displacements, rounded for storage."""
    # The types are int8 for gradient_probes and float16 for displacement_probes. If a probe
    # is not finite, neither is its scale.
    largest = np.abs(probes).max(-1)
    usable = np.isfinite(largest) & (largest > 0)
    unit = probes / np.where(usable, largest, 1)[..., None]
    unit[~usable] = 0
    return {
        "gradient_probes": np.rint(127 * unit[:, 0]).astype(np.int8),
        "displacement_probes": unit[:, 1].astype(np.float16),
        "probe_scales": largest,
    }


def decode_probes(arrays: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return the probes of gradients and displacements, each float64 (step, probe)."""
    scales = arrays["probe_scales"][:, :1].astype(np.float64)
    with np.errstate(invalid="ignore"):
        gradient = arrays["gradient_probes"] / 127.0 * scales
    return gradient, decode_displacements(arrays)


def decode_displacements(arrays: Mapping[str, Array]) -> Array:
    """Return the probes of displacements, float64 (step, probe)."""
    displacement = arrays["displacement_probes"].astype(np.float64)
    with np.errstate(invalid="ignore"):
        displacement *= arrays["probe_scales"][:, 1:].astype(np.float64)
    return displacement
