"""How far probes err in a run: told by adjacent gradients, whose cosine is known exactly."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.probed import adjacent_cosine, cosine
from trajstore.format.arrays import table_columns
from trajstore.format.rows import decode_probes
from trajstore.reading.run import Run

FloatArray = npt.NDArray[np.floating[Any]]

AROUND: Final = 32
"""Steps before and after one whose adjacent gradients tell."""


def error_ratios(run: Run, steps: npt.NDArray[np.int64]) -> FloatArray:
    """Compare the errors of adjacent gradients' cosines with what is said of them.

    Which elements of a gradient share a probe is fixed, and where few elements hold most of
    it that matters: errors may be a fraction of those of elements that meet at random.

    Parameters
    ----------
    run : Run
        The recorded run.
    steps : numpy.ndarray
        Steps, rising, shape ``(step,)``.

    Returns
    -------
    numpy.ndarray
        Root mean square of error over standard error in the steps around each of them;
        1 where none is known, as of measurements.
    """
    if run.group.is_measurement or run.spec.exact:
        return np.ones(len(steps))
    return np.array([_error_ratio(run, int(step)) for step in steps])


def _error_ratio(run: Run, step: int) -> float:
    around = slice(max(step - AROUND, 0), min(step + AROUND + 1, run.n_steps))
    names = ("gradient_probes", "displacement_probes", "probe_scales")
    gradients, _ = decode_probes(
        {name: run.stored.rows(name, around) for name in names}
    )
    tables, columns = run.stored.rows("tables", around), table_columns(run.spec)
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
