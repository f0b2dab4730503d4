"""Probes of recorded gradients and iterates."""

from typing import Any

import numpy as np
import numpy.typing as npt

from trajstore.format.rows import decode_probes
from trajstore.reading.run import Run

FloatArray = npt.NDArray[np.floating[Any]]


def read_probes(
    run: Run, steps: npt.NDArray[np.int64]
) -> tuple[FloatArray, FloatArray]:
    """Read probes of gradients and iterates; of an exact run, all elements.

    Parameters
    ----------
    run : Run
        The recorded run.
    steps : numpy.ndarray
        Growing numbers, shape ``(step,)``; what lies between them is read, too.

    Returns
    -------
    tuple of numpy.ndarray
        float64, shape ``(step, probe)``.
    """
    names = ("gradient_probes", "displacement_probes", "probe_scales")
    around = slice(int(steps[0]), int(steps[-1]) + 1)
    windows = run.stored.rows("window", around)[steps - around.start]
    if run.spec.exact:
        whole = slice(0, run.layout.size)
        references = np.stack(
            [run.stored.anchors.decode(int(c), whole) for c in windows]
        )
        gradients, displacements = (
            np.concatenate(
                [run.stored.large_rows(name, slice(k, k + 1), whole) for k in steps]
            ).astype(np.float64)
            for name in ("gradient", "displacement")
        )
        return gradients, references + displacements
    stored = {
        name: run.stored.rows(name, around)[steps - around.start] for name in names
    }
    gradients, displacements = decode_probes(stored)
    return gradients, run.windows["probes"].values[windows] + displacements
