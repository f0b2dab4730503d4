"""Complete measured steps to stored rows, and code their probes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import n_blocks, table_columns
from trajstore.format.run_spec import RunSpec

Array = npt.NDArray[Any]


def measured_arrays(spec: RunSpec, size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of each array that is measured in a step, by name."""
    # tables (layer, measured quantity) and either signs, scales and probes (2, probe) or,
    # in an exact recording, gradient and displacement (param,).
    n_measured = table_columns(spec)["update_dot_displacement"].stop
    arrays = {"tables": ("float32", (len(spec.names), n_measured))}
    if spec.exact:
        return arrays | dict.fromkeys(
            ("gradient", "displacement"), ("float32", (size,))
        )
    return arrays | {
        "signs": ("uint8", (spec.sketch_bits // 8,)),
        "scales": ("float32", (n_blocks(spec.sketch_bits),)),
        "probes": ("float32", (2, spec.probes)),
    }


def complete_rows(
    measured: Mapping[str, Array],
    places: Sequence[tuple[int, int, int]],
    anchor_sq: Array,
    scalars: Sequence[Mapping[str, float]],
    spec: RunSpec,
) -> tuple[dict[str, Array], list[dict[str, float]]]:
    """Return rows for `trajstore.store.row_table.RowTable.append`: arrays and scalars."""
    # `measured` holds `measured_arrays` with a leading dimension step, `places` epoch,
    # iteration and window of each step, `anchor_sq` |r|^2, float64 (step, layer).
    rows = dict(measured)
    rows["epoch"], rows["iteration"], rows["window"] = np.array(places, np.int32).T
    rows["tables"] = complete_tables(rows["tables"], anchor_sq, spec)
    if not spec.exact:
        rows |= encode_probes(rows.pop("probes"))
    lengths = norms(rows["tables"], spec)
    completed = [
        {**row, **{name: float(values[i]) for name, values in lengths.items()}}
        for i, row in enumerate(scalars)
    ]
    return rows, completed


def complete_tables(measured: Array, anchor_sq: Array, spec: RunSpec) -> Array:
    """Append |x|^2 and <g, x> to measured products, float32 (step, layer, quantity)."""
    # With x = r + a: |x|^2 = |a|^2 + 2 <a, r> + |r|^2 and <g, x> = <g, a> + <g, r>.
    # Without a basis, the products with r are not measured.
    if not spec.basis:
        return measured
    columns = table_columns(spec)
    table = measured.astype(np.float64)
    on_anchor = table[..., columns["grad_dot_basis"].start]
    displacement_on_anchor = table[..., columns["displacement_dot_basis"].start]
    displacement_sq = table[..., columns["displacement_sq"].start]
    grad_dot_displacement = table[..., columns["grad_dot_displacement"].start]
    # Values of a diverging run are recorded as they are.
    with np.errstate(invalid="ignore", over="ignore"):
        param_sq = displacement_sq + 2 * displacement_on_anchor + anchor_sq
        derived = [np.maximum(param_sq, 0), grad_dot_displacement + on_anchor]
        return np.concatenate([measured, np.stack(derived, -1)], -1, dtype=np.float32)


def norms(tables: Array, spec: RunSpec) -> dict[str, Array]:
    """Return norms over all layers, float64 (step,), by name of the scalar."""
    columns = table_columns(spec)
    squares = {"grad_norm": "grad_sq", "update_norm": "update_sq"}
    squares["param_norm"] = "param_sq"
    return {
        name: np.sqrt(tables[..., columns[square].start].sum(-1, dtype=np.float64))
        for name, square in squares.items()
        if square in columns
    }


def encode_probes(probes: Array) -> dict[str, Array]:
    """Round probes (step, 2, probe) of gradients and displacements for the store."""
    # gradient_probes int8, displacement_probes float16, probe_scales; the scale of a step
    # that is not finite is not finite.
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
    scales = arrays["probe_scales"].astype(np.float64)
    gradient = arrays["gradient_probes"] / 127.0
    displacement = arrays["displacement_probes"].astype(np.float64)
    with np.errstate(invalid="ignore"):
        return gradient * scales[:, :1], displacement * scales[:, 1:]
