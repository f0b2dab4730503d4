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
    # The part of these energies that elements of the unknown vector meet in others than their own,
    # if the energy in a probe is spread like a profile, float64 (profile, row, probe).
    crossed: FloatArray


def no_collisions(n_probes: int) -> Collisions:
    """Return the value for networks that are too large to count collisions."""
    return Collisions(np.zeros((0, n_probes)), np.zeros((0, 0, n_probes)))


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
    rows = [np.bincount(probe, row, n_probes) for row in (*profiles, f_sq, v_sq)]
    # Elements of which nothing is known have equal shares of a probe.
    equal = 1 / np.bincount(probe, minlength=n_probes)[probe]
    others = []
    for profile, row in zip(profiles, rows[: len(profiles)], strict=True):
        total = row[probe]
        others.append(1 - np.divide(profile, total, out=equal.copy(), where=total > 0))
    crossed = [
        [np.bincount(probe, o * sq, n_probes) for sq in (f_sq, v_sq)] for o in others
    ]
    if n_layers:
        place, n = layer * n_probes + probe, n_layers * n_probes
        rows += [*np.bincount(place, v_sq, n).reshape(n_layers, n_probes)]
        for sums, o in zip(crossed, others, strict=True):
            sums += [*np.bincount(place, o * v_sq, n).reshape(n_layers, n_probes)]
    return Collisions(np.array(rows), np.array(crossed))


def inverse_counts(
    probes: FloatArray, collisions: Collisions, rounded: FloatArray
) -> FloatArray:
    """Return 1 / n for products with each known vector, (step, row): n probes err as much."""
    # `probes` (step, probe) are those of the unknown vectors; their squares stand for energies.
    # `rounded` (step,) are the shares of rounding errors of anchors in these energies.
    known = collisions.energies[len(PROFILES) :].sum(-1, keepdims=True)
    crossed = np.zeros_like(collisions.crossed)
    np.divide(collisions.crossed, known, out=crossed, where=known > 0)
    squares = np.square(probes)
    whole = squares.sum(-1, keepdims=True)
    displaced, at_borders = squares @ crossed.swapaxes(-1, -2)
    counts: FloatArray = displaced + rounded[:, None] * (at_borders - displaced)
    np.divide(counts, whole, out=counts, where=whole > 0)
    return counts
