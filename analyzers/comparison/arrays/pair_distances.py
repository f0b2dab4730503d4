"""Distances between located iterates, see `analyzers.comparison.arrays.probed_points`."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.geometry import Estimate
from analyzers.comparison.arrays.probed_points import (
    Known,
    Located,
    scaled_cosine,
    with_rounding,
)

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

SINGLE: Final = 2.0**-24
"""Relative rounding error of a number in float32; whole iterates, relative to their origin, and
tables are rounded to it."""


class Points:
    """Stacked located iterates, and pairs of one of them with several others."""

    def __init__(
        self,
        points: Sequence[Located],
        known: Mapping[int, Known],
        group: IntArray,
        window: IntArray,
    ) -> None:
        # `group` (point,) tells points with different random signs apart; it is the key of
        # `known`, and -1 for whole iterates. `window` (point,) tells windows apart, -1 for
        # whole iterates.
        self._known, self._group, self._window = known, group, window
        self._gram = next(iter(known.values())).gram
        columns: Any = [np.array(column) for column in zip(*points, strict=True)]
        # Each field has the points as its first axis.
        self._stacked: Any = Located(*columns)

    def distances_from(self, i: int, others: slice) -> Estimate:
        """Return the distances of point `i` from other points, (other,)."""
        squared, variance = self._different_windows(i, others)
        same = (self._window[others] == self._window[i]) & (self._window[i] >= 0)
        if same.any():
            found = self._same_window(i, others)
            squared = np.where(same, found[0], squared)
            variance = np.where(same, found[1], variance)
        length, error = np.sqrt(np.maximum(squared, 0)), np.sqrt(variance)
        # First order in the squared distance, and bounded where that is near 0.
        with np.errstate(divide="ignore", invalid="ignore"):
            stderr = np.fmin(error / (2 * length), np.sqrt(error))
        return Estimate(length, stderr)

    def _different_windows(
        self, i: int, others: slice
    ) -> tuple[FloatArray, FloatArray]:
        """Return squared distances and their variances."""
        # With the known vectors A and the remainders p of both points and h = A_i - A_k, the
        # squared distance is |h|^2 + |p_i|^2 + |p_k|^2 + 2 <h, p_i> - 2 <h, p_k> - 2 <p_i, p_k>.
        p = self._stacked
        known = p.weights[i] - p.weights[others]
        on_gram = known @ self._gram
        h_sq = (on_gram * known).sum(1)
        squared = h_sq + p.left_sq[i] + p.left_sq[others]
        sizes = np.diagonal(self._gram)
        scale = (np.abs(p.weights[i]) @ sizes) + np.abs(p.weights[others]) @ sizes
        left = p.left_sq[i] + p.left_sq[others]
        variance = SINGLE**2 * (4 * h_sq * scale + 4 * left**2) + SINGLE**4 * scale**2
        if self._group[i] >= 0:
            product = self._with_remainder(known, on_gram, h_sq, np.full(len(known), i))
            squared += 2 * product.value
            variance += 4 * product.stderr**2
            variance += self._advance_variance(on_gram, slice(i, i + 1))
        if (self._group[others] >= 0).any():
            indices = np.arange(len(self._group))[others]
            product = self._with_remainder(known, on_gram, h_sq, indices)
            squared -= 2 * product.value
            variance += 4 * product.stderr**2
            variance += self._advance_variance(-on_gram, others)
            if self._group[i] >= 0:
                product = self._of_remainders(i, others)
                squared -= 2 * product.value
                variance += 4 * product.stderr**2
        return squared, variance

    def _with_remainder(
        self, known: FloatArray, on_gram: FloatArray, h_sq: FloatArray, which: IntArray
    ) -> Estimate:
        """Return the products of known vectors (pair, iterate) with the remainders `which`."""
        p = self._stacked
        along = np.einsum("pi,pfi->pf", on_gram, p.frame[which])
        rest = known - np.einsum("pf,pfi->pi", along, p.frame[which])
        rest_sq = np.maximum(h_sq - (along**2).sum(1), 0)
        probes = np.zeros_like(p.left_probes[which])
        for group, other in self._known.items():
            chosen = self._group[which] == group
            probes[chosen] = rest[chosen] @ other.probes
        product = scaled_cosine(rest_sq, probes, p.left_sq[which], p.left_probes[which])
        return with_rounding(product, p.rounding[which], probes)

    def _advance_variance(self, on_gram: FloatArray, which: slice) -> FloatArray:
        """Return the part of the variance that comes from the errors of the parts along f."""
        # The other terms do not change with the part along f if the distance is taken to the
        # iterate without this part.
        p = self._stacked
        unit, advance = p.frame[which][:, -1], p.advance[which]
        slope = (on_gram * unit).sum(1) - advance
        variance: FloatArray = 4 * (p.advance_error[which] * slope) ** 2
        return variance

    def _of_remainders(self, i: int, others: slice) -> Estimate:
        p = self._stacked
        product = scaled_cosine(
            p.left_sq[i], p.left_probes[i], p.left_sq[others], p.left_probes[others]
        )
        product = with_rounding(product, p.rounding[i], p.left_probes[others])
        product = with_rounding(product, p.rounding[others], p.left_probes[i])
        # Probes with other random signs say nothing of the product; its bound replaces the
        # standard error.
        bound = np.sqrt(p.left_sq[i] * p.left_sq[others])
        unrelated = self._group[others] != self._group[i]
        return Estimate(
            np.where(unrelated, 0.0, product.value),
            np.where(unrelated, bound, product.stderr),
        )

    def _same_window(self, i: int, others: slice) -> tuple[FloatArray, FloatArray]:
        """Return squared distances and their variances for pairs in one window."""
        p = self._stacked
        known = p.on_basis[i] - p.on_basis[others]
        product = scaled_cosine(
            p.off_basis_sq[i],
            p.off_basis_probes[i],
            p.off_basis_sq[others],
            p.off_basis_probes[others],
        )
        product = with_rounding(product, p.rounding[i], p.off_basis_probes[others])
        product = with_rounding(product, p.rounding[others], p.off_basis_probes[i])
        squared = ((known @ self._gram) * known).sum(1)
        squared += p.off_basis_sq[i] + p.off_basis_sq[others] - 2 * product.value
        return squared, 4 * product.stderr**2
