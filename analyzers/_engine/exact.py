"""Geometry of exact recordings, which hold whole gradients and displacements."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.geometry import (
    COVARIANCE,
    QUANTITIES,
    USES_SUM,
    Estimate,
    Sampled,
    geometry,
    quantities,
)
from analyzers._engine.at_target import IsAt, without_target
from analyzers._engine.vectors.walk import walk, window_steps
from trajstore.format.layout import BLOCK
from trajstore.reading.run import Run
from trajstore.reading.target import Target

FloatArray = npt.NDArray[np.floating[Any]]

READ_BYTES: Final = 32 << 20
"""Bytes of gradients to read in one batch."""


def exact_sums(
    run: Run,
    target: Target,
    steps: slice,
    elements: slice,
    *,
    weight_decay: float,
) -> FloatArray:
    """Return the sums of <g, d>, |d|^2 and |g|^2, float64 (3, step, layer)."""
    # d is x - x*, and `elements` covers whole blocks.
    layers = run.layout.layer_of_block[elements.start // BLOCK : elements.stop // BLOCK]
    sums = np.zeros((3, steps.stop - steps.start, len(run.layout.names)))
    by_window = window_steps(run, steps)
    windows = range(min(by_window), max(by_window) + 1)
    n_rows = max(1, READ_BYTES // (4 * (elements.stop - elements.start)))
    for c, vectors in walk(run, target, windows, elements):
        part = by_window.get(c, slice(0, 0))
        v = (vectors.target - vectors.anchor).astype(np.float64)
        for start in range(part.start, part.stop, n_rows):
            rows = slice(start, min(start + n_rows, part.stop))
            gradients = run.stored.large_rows("gradient", rows, elements)
            displacements = run.stored.large_rows("displacement", rows, elements)
            for step, gradient, displacement in zip(
                range(rows.start, rows.stop), gradients, displacements, strict=True
            ):
                x = vectors.anchor + displacement.astype(np.float64)
                g, d = gradient + weight_decay * x, displacement - v
                for total, product in zip(sums, (g * d, d**2, g**2), strict=True):
                    by_block = product.reshape(-1, BLOCK).sum(1)
                    np.add.at(total[step - steps.start], layers, by_block)
    return sums


def combine_exact(
    parts: Sequence[FloatArray], *, layers: bool, at: IsAt
) -> dict[str, FloatArray]:
    """Add up the sums of all parts, and return the geometry with standard errors of 0."""
    # `at` (step,) are the steps at x*.
    products, distance_sq, gradient_sq = np.sum(parts, axis=0)
    if not layers:
        products, distance_sq = products.sum(1), distance_sq.sum(1)
        gradient_sq = gradient_sq.sum(1)
    zeros = np.zeros_like(products)
    sampled = Sampled(Estimate(products, zeros), gradient_sq, zeros)
    found = quantities(sampled, Estimate(np.sqrt(distance_sq), zeros))
    found = without_target(found, at)
    result = geometry(found, zeros, zeros)
    result |= {f"{q}{COVARIANCE}": 0 * result[q] for q in QUANTITIES}
    return result | {USES_SUM: zeros}
