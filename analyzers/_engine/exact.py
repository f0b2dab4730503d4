"""The same quantities of a run that was recorded exactly, in pieces."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.geometry import Estimate, Sampled, geometry
from analyzers._engine.sweep import sweep
from analyzers._engine.windows import windows_of
from trajstore.format.layout import BLOCK
from trajstore.reading.run import Run
from trajstore.reading.target import Target

FloatArray = npt.NDArray[np.floating[Any]]

READ_BYTES: Final = 32 << 20
"""Gradients that are read at once."""


def exact_sums(
    run: Run,
    target: Target,
    steps: slice,
    elements: slice,
    *,
    weight_decay: float,
) -> FloatArray:
    """Products with d = x - x* over some elements.

    Parameters
    ----------
    run : Run
        The recorded run.
    target : Target
        The point x*.
    steps : slice
        Which steps.
    elements : slice
        Between multiples of `BLOCK`.
    weight_decay : float
        Times the parameters is added to the gradient.

    Returns
    -------
    numpy.ndarray
        float64, shape ``(3, step, layer)``: <g, d>, |d|^2 and |g|^2.
    """
    layers = run.layout.layer_of_block[elements.start // BLOCK : elements.stop // BLOCK]
    sums = np.zeros((3, steps.stop - steps.start, len(run.layout.names)))
    of_window = windows_of(run, steps)
    windows = range(min(of_window), max(of_window) + 1)
    at_once = max(1, READ_BYTES // (4 * (elements.stop - elements.start)))
    for c, around in sweep(run, target, windows, elements):
        part = of_window.get(c, slice(0, 0))
        v = (around.target - around.reference).astype(np.float64)
        for start in range(part.start, part.stop, at_once):
            rows = slice(start, min(start + at_once, part.stop))
            gradients = run.stored.large_rows("gradient", rows, elements)
            displacements = run.stored.large_rows("displacement", rows, elements)
            for step, gradient, displacement in zip(
                range(rows.start, rows.stop), gradients, displacements, strict=True
            ):
                x = around.reference + displacement.astype(np.float64)
                g, d = gradient + weight_decay * x, displacement - v
                for total, product in zip(sums, (g * d, d**2, g**2), strict=True):
                    of_blocks = product.reshape(-1, BLOCK).sum(1)
                    np.add.at(total[step - steps.start], layers, of_blocks)
    return sums


def finish_exact(parts: Sequence[FloatArray], *, layers: bool) -> dict[str, FloatArray]:
    """Put the quantities of some steps together, without any standard error."""
    h, squares, gradient_sq = np.sum(parts, axis=0)
    if not layers:
        h, squares, gradient_sq = h.sum(1), squares.sum(1), gradient_sq.sum(1)
    none = np.zeros_like(h)
    sampled = Sampled(Estimate(h, none), gradient_sq, none)
    return geometry(sampled, Estimate(np.sqrt(squares), none))
