"""Read recorded probes, and calibrate the errors of cosines computed from them."""

from collections.abc import Mapping
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
"""Steps on either side of a step; the cosines of all of them calibrate its error."""


def read_probes(
    run: Run, steps: npt.NDArray[np.int64]
) -> tuple[FloatArray, FloatArray]:
    """Read the probes of gradients and iterates at `steps`, float64 (step, probe)."""
    # `steps` must ascend; all rows from the first to the last step are read. For an exact
    # recording, whole vectors take the place of probes.
    rows = slice(int(steps[0]), int(steps[-1]) + 1)
    windows = run.stored.rows("window", rows)[steps - rows.start]
    if run.spec.exact:
        all_elements = slice(0, run.layout.size)
        anchors = np.stack(
            [run.stored.anchors.decode(int(c), all_elements) for c in windows]
        )
        gradients, displacements = (
            np.concatenate(
                [
                    run.stored.large_rows(name, slice(k, k + 1), all_elements)
                    for k in steps
                ]
            ).astype(np.float64)
            for name in ("gradient", "displacement")
        )
        return gradients, anchors + displacements
    stored = {name: run.stored.rows(name, rows)[steps - rows.start] for name in NAMES}
    gradients, displacements = decode_probes(stored)
    return gradients, run.windows.variables["probes"].values[windows] + displacements


def rounding_squares(run: Run, steps: npt.NDArray[np.int64]) -> FloatArray:
    """Return the expected sums of squared rounding errors of iterates' probes, (step,)."""
    # `steps` must ascend. Probes of displacements are float16 numbers times a scale.
    if run.spec.exact:
        return np.zeros(len(steps))
    rows = slice(int(steps[0]), int(steps[-1]) + 1)
    chosen = steps - rows.start
    names = ("displacement_probes", "probe_scales")
    stored = {name: run.stored.rows(name, rows)[chosen] for name in names}
    result: FloatArray = probe_rounding(stored).sum(1)
    return result


def probe_rounding(stored: Mapping[str, npt.NDArray[Any]]) -> FloatArray:
    """Return the variance of the rounding error of every probe of displacements, (step, probe)."""
    # The errors are even within half a unit in the last place. The largest probe is stored as 1.
    units = np.abs(stored["displacement_probes"])
    scales = stored["probe_scales"][:, 1:].astype(np.float64)
    with np.errstate(invalid="ignore"):
        places = np.spacing(units).astype(np.float64)
        places[units == 1] = 0
        places *= scales
        np.square(places, out=places)
    places /= 12
    return places


def error_ratios(run: Run, steps: npt.NDArray[np.int64]) -> FloatArray:
    """Return the rms ratio of error to standard error near each step, (step,)."""
    # The cosines of adjacent gradients are known exactly, so they reveal the true errors.
    # Standard errors assume that elements are assigned to probes at random, but the
    # assignment is fixed: where a few elements hold most of a gradient, the true errors
    # may be much smaller. Measurements have no exact cosines, and get a ratio of 1.
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
    estimate = cosine(gradients[1:], gradients[:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (estimate.value - exact) / estimate.stderr
    z = z[np.isfinite(z)]
    return float(np.sqrt((z**2).mean())) if len(z) else 1.0
