"""From what a step is measured by to the rows of the store, and back for the probes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import n_blocks, table_columns
from trajstore.format.run_spec import RunSpec

Array = npt.NDArray[Any]


def measured_arrays(spec: RunSpec, size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Describe what a step is measured by, before it is completed for the store.

    Parameters
    ----------
    spec : RunSpec
        What is recorded.
    size : int
        Length of the flat parameter vector.

    Returns
    -------
    dict from str to tuple
        Type and shape of one step's ``tables`` (layer, measured quantity) and either
        ``signs``, ``scales`` and ``probes`` (2, probe) or, exact, ``gradient`` and
        ``displacement`` (param,).
    """
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
    reference_sq: Array,
    scalars: Sequence[Mapping[str, float]],
    spec: RunSpec,
) -> tuple[dict[str, Array], list[dict[str, float]]]:
    """Make of measured steps what `trajstore.store.row_table.RowTable.append` takes.

    Parameters
    ----------
    measured : mapping from str to numpy.ndarray
        The arrays of `measured_arrays`, with the step as first dimension.
    places : sequence of tuple of int
        Epoch, iteration and window of every step.
    reference_sq : numpy.ndarray
        float64, (step, layer): |r|^2 of the steps' windows.
    scalars : sequence of mapping from str to float
        What was logged with every step.
    spec : RunSpec
        What is recorded.

    Returns
    -------
    rows : dict from str to numpy.ndarray
        By name of the array in the store.
    scalars : list of dict
        Those given, and the norms that are known.
    """
    rows = dict(measured)
    rows["epoch"], rows["iteration"], rows["window"] = np.array(places, np.int32).T
    rows["tables"] = complete_tables(rows["tables"], reference_sq, spec)
    if not spec.exact:
        rows |= encode_probes(rows.pop("probes"))
    lengths = norms(rows["tables"], spec)
    completed = [
        {**row, **{name: float(values[i]) for name, values in lengths.items()}}
        for i, row in enumerate(scalars)
    ]
    return rows, completed


def complete_tables(measured: Array, reference_sq: Array, spec: RunSpec) -> Array:
    """Append to the measured inner products what follows from them.

    With x = r + a: ``|x|^2 = |a|^2 + 2 <a, r> + |r|^2`` and ``<g, x> = <g, a> + <g, r>``.
    Without a basis nothing does: products with r are not measured.

    Parameters
    ----------
    measured : numpy.ndarray
        float32, (step, layer, measured quantity).
    reference_sq : numpy.ndarray
        float64, (step, layer): |r|^2 of the steps' windows.
    spec : RunSpec
        Names the columns.

    Returns
    -------
    numpy.ndarray
        float32, (step, layer, quantity).
    """
    if not spec.basis:
        return measured
    columns = table_columns(spec)
    table = measured.astype(np.float64)
    on_reference = table[..., columns["grad_dot_basis"].start]
    displacement_on_reference = table[..., columns["displacement_dot_basis"].start]
    displacement_sq = table[..., columns["displacement_sq"].start]
    grad_dot_displacement = table[..., columns["grad_dot_displacement"].start]
    # What diverges is recorded as it is.
    with np.errstate(invalid="ignore", over="ignore"):
        param_sq = displacement_sq + 2 * displacement_on_reference + reference_sq
        derived = [np.maximum(param_sq, 0), grad_dot_displacement + on_reference]
        return np.concatenate([measured, np.stack(derived, -1)], -1, dtype=np.float32)


def norms(tables: Array, spec: RunSpec) -> dict[str, Array]:
    """Norms over all tensors, float64 of shape (step,), by name of the scalar."""
    columns = table_columns(spec)
    squares = {"grad_norm": "grad_sq", "update_norm": "update_sq"}
    squares["param_norm"] = "param_sq"
    return {
        name: np.sqrt(tables[..., columns[square].start].sum(-1, dtype=np.float64))
        for name, square in squares.items()
        if square in columns
    }


def encode_probes(probes: Array) -> dict[str, Array]:
    """Round probes for the store.

    Parameters
    ----------
    probes : numpy.ndarray
        float32, (step, 2, probe): of the gradient and of the displacement.

    Returns
    -------
    dict from str to numpy.ndarray
        The arrays ``gradient_probes`` (int8), ``displacement_probes`` (float16) and
        ``probe_scales``; see `decode_probes`. Of a step that is not finite the scale is
        not.
    """
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
    """Return the probes of gradients and displacements, float64 of (step, probe)."""
    scales = arrays["probe_scales"].astype(np.float64)
    gradient = arrays["gradient_probes"] / 127.0
    displacement = arrays["displacement_probes"].astype(np.float64)
    with np.errstate(invalid="ignore"):
        return gradient * scales[:, :1], displacement * scales[:, 1:]
