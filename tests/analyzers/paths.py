"""Whole paths in float64, for comparison with recorded products."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.reading.run import Run

Array = npt.NDArray[np.float64]


class Path(NamedTuple):
    """Gradients (step, param) and iterates (step + 1, param) of a run."""

    gradients: Array
    iterates: Array

    @property
    def updates(self) -> Array:
        return np.diff(self.iterates, axis=0)


def path_of(run: Run) -> Path:
    """Return the path of a run recorded with ``exact=True``."""
    whole = slice(0, run.layout.size)
    steps = slice(0, run.n_steps)
    window = run.stored.rows("window", steps)
    anchors = np.stack([run.stored.anchors.decode(int(c), whole) for c in window])
    displacements = run.stored.large_rows("displacement", steps, whole)
    final = run.stored.vector("final", whole).astype(np.float64)
    return Path(
        run.stored.large_rows("gradient", steps, whole).astype(np.float64),
        np.vstack([anchors.astype(np.float64) + displacements, final]),
    )


def products(a: Array, b: Array) -> Array:
    """Return the inner products of corresponding rows."""
    result: Array = (a * b).sum(-1)
    return result


def norms(a: Array) -> Array:
    """Return the norms of rows."""
    result: Array = np.linalg.norm(a, axis=-1)
    return result
