"""Read recorded probes, and calibrate the errors of cosines that are computed from them."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.probed import adjacent_cosine, cosine
from trajstore.format.arrays import table_columns
from trajstore.format.rows import decode_probes
from trajstore.reading.run import Run

FloatArray = npt.NDArray[np.floating[Any]]

NAMES: Final = ("gradient_probes", "displacement_probes", "probe_scales")

CALIBRATION_STEPS: Final = 32
"""Steps before and after a step whose adjacent gradients calibrate its errors."""


def read_probes(
    run: Run, steps: npt.NDArray[np.int64]
) -> tuple[FloatArray, FloatArray]:
    """Read probes of gradients and iterates at rising steps, float64 (step, probe)."""
    # All rows from the first to the last step are read. An exact recording has whole
    # vectors instead of probes.
    rows = slice(int(steps[0]), int(steps[-1]) + 1)
    windows = run.stored.rows("window", rows)[steps - rows.start]
    if run.spec.exact:
        whole = slice(0, run.layout.size)
        anchors = np.stack([run.stored.anchors.decode(int(c), whole) for c in windows])
        gradients, displacements = (
            np.concatenate(
                [run.stored.large_rows(name, slice(k, k + 1), whole) for k in steps]
            ).astype(np.float64)
            for name in ("gradient", "displacement")
        )
        return gradients, anchors + displacements
    stored = {name: run.stored.rows(name, rows)[steps - rows.start] for name in NAMES}
    gradients, displacements = decode_probes(stored)
    return gradients, run.windows["probes"].values[windows] + displacements


def error_ratios(run: Run, steps: npt.NDArray[np.int64]) -> FloatArray:
    """Return the rms ratio of error to standard error near rising steps, (step,)."""
    # The cosines of adjacent gradients are known exactly, so they show the true errors.
    # Which elements share a probe is fixed. Where few elements hold most of a gradient,
    # errors may be a fraction of those of elements that meet at random. Measurements
    # have no exact cosines, and get a ratio of 1.
    if run.group.is_measurement or run.spec.exact:
        return np.ones(len(steps))
    return np.array([_error_ratio(run, int(step)) for step in steps])


def _error_ratio(run: Run, step: int) -> float:
    first, last = step - CALIBRATION_STEPS, step + CALIBRATION_STEPS
    rows = slice(max(first, 0), min(last + 1, run.n_steps))
    gradients, _ = decode_probes({name: run.stored.rows(name, rows) for name in NAMES})
    tables, columns = run.stored.rows("tables", rows), table_columns(run.spec)
    products, squares = (
        tables[..., columns[name].start].sum(1, dtype=np.float64)
        for name in ("grad_dot_previous", "grad_sq")
    )
    exact = adjacent_cosine(products[1:], squares[1:], squares[:-1])
    found = cosine(gradients[1:], gradients[:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (found.value - exact) / found.stderr
    z = z[np.isfinite(z)]
    return float(np.sqrt((z**2).mean())) if len(z) else 1.0
