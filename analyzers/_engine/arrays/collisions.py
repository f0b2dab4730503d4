"""Errors of products of probes in small networks, where few elements share a probe.

The probes P of two vectors a and v estimate <a, v>. Errors come from pairs of different elements
in the same probe: the variance is the sum over probes j of A_j V_j, minus the sum over elements
of a_e^2 v_e^2, if A_j and V_j are the energies in probe j. For large vectors that are spread
evenly it is |a|^2 |v|^2 / n for n probes. In a small network it may be much smaller, and it is 0
if every element has a probe of its own.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

HALF_ERROR: Final = 2.0**-22 / 3 * 0.54
"""Mean square of the relative rounding error of float16: 2^-22 / 3 just above a power of two, a
quarter of that just below the next, and 0.54 of it on average."""

SMALL_HALF_ERROR: Final = 2.0**-48 / 12
"""Mean square of the rounding error of small float16 numbers, whose spacing is 2^-24."""

SINGLE_ERROR: Final = 2.0**-23
"""Relative error of products in float32: of a rounded product, and of the sums before it."""


PROFILES: Final = ("displacement", "rounding")
"""Profiles of the elements of an unknown vector."""


class Collisions(NamedTuple):
    """Which elements of known vectors share probes with elements of an unknown vector."""

    # Rows: two profiles, which stand for the squared elements of the unknown vector, of
    # displacements within a window and of the rounding errors of anchors; the displacement f from
    # the anchor to the next anchor; the part v of the residual orthogonal to f; and the parts of v
    # in each layer, if layers are measured.
    energies: FloatArray  # sums of squares by probe, float64 (row, probe)
    # Sums over elements of a profile times the square, float64 (profile, row).
    overlap: FloatArray


def no_collisions(n_probes: int) -> Collisions:
    """Return the value for networks that are too large to count collisions."""
    return Collisions(np.zeros((0, n_probes)), np.zeros((0, 0)))


def find_collisions(
    f: FloatArray,  # (element,)
    residual: FloatArray,  # (element,)
    probe: IntArray,  # (element,): probe of each element
    layer: IntArray,  # (element,): layer of each element
    *,
    block: IntArray,  # (element,): block of each element, ascending; its codes share a scale
    n_probes: int,
    n_layers: int,  # 0 to leave out the layers
) -> Collisions:
    """Sum energies of known vectors by probe."""
    f, residual = f.astype(np.float64), residual.astype(np.float64)
    along = (f @ residual) / max(float(f @ f), np.finfo(float).tiny)
    f_sq, v_sq = f**2, (residual - along * f) ** 2
    # Displacements within a window have most of their energy in the same elements as f, but not
    # exactly: half of the profile is spread evenly over each layer. At its borders, only the
    # rounding errors of anchors are left, which are even within a block.
    even = np.bincount(layer, f_sq) / np.maximum(np.bincount(layer), 1)
    starts = np.append(0, np.flatnonzero(np.diff(block)) + 1)
    lengths = np.diff(starts, append=len(block))
    largest = np.repeat(np.maximum.reduceat(f_sq, starts), lengths)
    profiles = [(f_sq + even[layer]) / 2, largest]
    rows = [*profiles, f_sq, v_sq]
    energies = [np.bincount(probe, row, n_probes) for row in rows]
    overlap = [[profile @ row for row in rows] for profile in profiles]
    if n_layers:
        by_layer = np.bincount(layer * n_probes + probe, v_sq, n_layers * n_probes)
        energies += [*by_layer.reshape(n_layers, n_probes)]
        for sums, profile in zip(overlap, profiles, strict=True):
            sums += [*np.bincount(layer, profile * v_sq, n_layers)]
    return Collisions(np.array(energies), np.array(overlap))


def inverse_counts(
    probes: FloatArray, collisions: Collisions, rounded: FloatArray
) -> FloatArray:
    """Return 1 / n for products with each known vector, (step, row): n probes err as much."""
    # `probes` (step, probe) are those of the unknown vectors; their squares stand for energies.
    # `rounded` (step,) are the shares of rounding errors of anchors in these energies.
    n = len(PROFILES)
    energies, single = collisions.energies[n:], collisions.overlap[:, n:]
    pairs = collisions.energies[:n] @ energies.T
    alone = np.divide(single, pairs, out=np.zeros_like(pairs), where=pairs > 0)
    # Rounding leaves differences where every element has a probe of its own.
    together = np.where(alone > 1 - 1e-9, 0.0, 1 - alone)
    mixed = together[0] + rounded[:, None] * (together[1] - together[0])
    squares = np.square(probes)
    whole = squares.sum(-1, keepdims=True)
    pairs = squares @ _shares(energies).T
    np.divide(pairs, whole, out=pairs, where=whole > 0)
    counts: FloatArray = pairs * mixed
    return counts


def _shares(energies: FloatArray) -> FloatArray:
    """Divide rows by their sums, where these are not 0."""
    whole = energies.sum(-1, keepdims=True)
    shares: FloatArray = np.zeros_like(energies)
    np.divide(energies, whole, out=shares, where=whole > 0)
    return shares


def rounding_variance(probes: FloatArray, known: FloatArray) -> FloatArray:
    """Return the variance of products of probes (step, probe) stored as float16, (step, ...)."""
    # `known` holds the probes (..., probe) of other vectors, which are not rounded. The largest
    # probe of a step is stored as 1.
    squares, known_sq = np.square(probes), np.square(known)
    smallest = np.multiply.outer(SMALL_HALF_ERROR * squares.max(-1), known_sq.sum(-1))
    variance: FloatArray = HALF_ERROR * (squares @ known_sq.T) + smallest
    return variance
