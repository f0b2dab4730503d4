"""The same quantities of a run that was recorded exactly, in pieces."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers._arrays.path_geometry import Estimate, geometry
from analyzers._windows import Window
from trajstore.layout import BLOCK

FloatArray = npt.NDArray[np.floating[Any]]


def exact_sums(window: Window, steps: slice, elements: slice) -> FloatArray:
    """Products with d = x - x* over some elements.

    Parameters
    ----------
    window : Window
        Which window.
    steps : slice
        Which of its steps.
    elements : slice
        Between multiples of `BLOCK`.

    Returns
    -------
    numpy.ndarray
        float64, shape ``(3, step, layer)``: <g, d>, |d|^2 and |g|^2.
    """
    run = window.run
    v = window.vectors(elements)[window.rank].astype(np.float64)
    layers = run.layout.layer_of_block[elements.start // BLOCK : elements.stop // BLOCK]
    sums = np.zeros((3, steps.stop - steps.start, len(run.layout.names)))
    gradients = run.large_rows("gradient", steps, elements)
    displacements = run.large_rows("displacement", steps, elements)
    for i in range(steps.stop - steps.start):
        gradient, to_target = gradients[i].astype(np.float64), displacements[i] - v
        for j, product in enumerate((gradient * to_target, to_target**2, gradient**2)):
            np.add.at(sums[j, i], layers, product.reshape(-1, BLOCK).sum(1))
    return sums


def finish_exact(parts: Sequence[FloatArray], *, layers: bool) -> dict[str, FloatArray]:
    """Put the quantities of some steps together, without any standard error."""
    h, squares, gradient_sq = np.sum(parts, axis=0)
    if not layers:
        h, squares, gradient_sq = h.sum(1), squares.sum(1), gradient_sq.sum(1)
    none = np.zeros_like(h)
    return geometry(Estimate(h, none), Estimate(np.sqrt(squares), none), gradient_sq)
