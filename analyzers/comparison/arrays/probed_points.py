"""Locate iterates between whole iterates, from recorded products and random probes.

A *known* vector is a weighted sum of whole iterates, given by its weights; the Gram matrix K of
the whole iterates yields products of known vectors. An iterate x = r + a with the anchor r has
the displacement a, of which |a|, the products with a few known vectors (the basis) and the probes
are recorded. Let f be the known displacement to the end of the window, without its part in the
basis. Then a is the sum of a known vector, which contains an estimate of the part of a along f,
and of a remainder of known length, which is orthogonal to the basis and to f.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.geometry import Estimate
from analyzers._engine.arrays.probed import cosine

FloatArray = npt.NDArray[np.floating[Any]]

DEPENDENT: Final = 1e-4
"""Eigenvalue of the normalised Gram matrix of the basis below which a direction is left out."""


class Displaced(NamedTuple):
    """What a store holds about an iterate x = r + a."""

    anchor: int  # index of r among the whole iterates
    squared: float  # |a|^2
    on_basis: FloatArray  # products of a with the basis, (basis,)
    basis: FloatArray  # weights of the basis, (basis, iterate)
    end: (
        FloatArray  # weights of the displacement to the end of the window, 0 if unknown
    )
    probes: FloatArray  # of a, (probe,)
    rounding: float  # expected sum of squares of the rounding errors of `probes`


class Located(NamedTuple):
    """An iterate as a known vector and a remainder; a whole iterate has no remainder."""

    weights: FloatArray  # known vector, (iterate,); NaN if the anchor is lost
    left_sq: float  # squared length of the remainder
    left_probes: FloatArray  # probes of the remainder, (probe,)
    frame: (
        FloatArray  # orthonormal basis, and the unit vector of f, (basis + 1, iterate)
    )
    advance: float  # estimated part of a along f
    advance_error: float
    # The known vector and the remainder if f is not used.
    on_basis: FloatArray
    off_basis_sq: float
    off_basis_probes: FloatArray
    rounding: float


class Known(NamedTuple):
    """Products and probes of whole iterates; those of lost iterates are 0."""

    gram: FloatArray  # (iterate, iterate)
    probes: FloatArray  # (iterate, probe)
    is_lost: npt.NDArray[np.bool_]  # (iterate,)


def known_of(gram: FloatArray, probes: FloatArray) -> Known:
    """Replace the products and probes of lost iterates by zeros."""
    lost = ~np.isfinite(np.diagonal(gram))
    kept = np.where(lost[:, None] | lost, 0.0, gram)
    return Known(kept, np.where(lost[:, None], 0.0, probes), lost)


def whole_iterate(known: Known, index: int, *, rank: int) -> Located:
    """Return a whole iterate as a located point, for bases of `rank` vectors."""
    n, n_probes = known.probes.shape
    weights = np.full(n, np.nan) if known.is_lost[index] else np.eye(n)[index]
    frame, zeros = np.zeros((rank + 1, n)), np.zeros(n_probes)
    return Located(weights, 0.0, zeros, frame, 0.0, 0.0, weights, 0.0, zeros, 0.0)


def locate(known: Known, given: Displaced) -> Located:
    """Split an iterate into a known vector and a remainder."""
    point = whole_iterate(known, given.anchor, rank=len(given.basis))
    if not np.isfinite(given.squared + given.probes.sum()):
        lost = np.full_like(point.weights, np.nan)
        return point._replace(weights=lost, on_basis=lost)
    directions, along = _orthonormal(known, given.basis, given.on_basis)
    on_basis = point.weights + along @ directions
    off_sq = max(given.squared - float(along @ along), 0.0)
    off_probes = given.probes - (along @ directions) @ known.probes
    point.frame[: len(directions)] = directions
    point = point._replace(
        weights=on_basis,
        left_sq=off_sq,
        left_probes=off_probes,
        on_basis=on_basis,
        off_basis_sq=off_sq,
        off_basis_probes=off_probes,
        rounding=given.rounding,
    )
    f = given.end - (directions @ known.gram @ given.end) @ directions
    f_sq = float(f @ known.gram @ f)
    whole_sq = float(given.end @ known.gram @ given.end)
    if not f_sq > DEPENDENT * whole_sq or known.is_lost[given.end != 0].any():
        return point
    unit = f / np.sqrt(f_sq)
    product = scaled_cosine(off_sq, off_probes, 1.0, unit @ known.probes)
    product = with_rounding(product, given.rounding, unit @ known.probes)
    advance = float(product.value)
    point.frame[-1] = unit
    return point._replace(
        weights=on_basis + advance * unit,
        left_sq=max(off_sq - advance**2, 0.0),
        left_probes=off_probes - advance * (unit @ known.probes),
        advance=advance,
        advance_error=float(product.stderr),
    )


def _orthonormal(
    known: Known, basis: FloatArray, products: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return orthonormal vectors with the span of the basis, and the products with them."""
    usable = ~(basis != 0)[:, known.is_lost].any(1) & np.isfinite(products)
    basis, products = basis[usable], products[usable]
    gram = basis @ known.gram @ basis.T
    norms = np.sqrt(np.maximum(np.diagonal(gram), 0))
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    values, vectors = np.linalg.eigh(gram * scale[:, None] * scale)
    kept = values > DEPENDENT
    mix = (vectors[:, kept] / np.sqrt(values[kept])).T * scale
    return mix @ basis, mix @ products


def scaled_cosine(
    a_sq: FloatArray | float, a: FloatArray, v_sq: FloatArray | float, v: FloatArray
) -> Estimate:
    """Estimate <a, v> from both squared lengths (...) and probes (..., probe)."""
    found, size = cosine(a, v), np.sqrt(np.asarray(a_sq * np.asarray(v_sq)))
    is_zero = ~np.isfinite(found.value) & np.isfinite(size)
    # The probes of a vector may vanish although it does not.
    value = np.where(is_zero, 0.0, found.value) * size
    return Estimate(value, np.where(is_zero, 1.0, found.stderr) * size)


def with_rounding(
    product: Estimate, rounding: FloatArray | float, v: FloatArray
) -> Estimate:
    """Add the error of rounded probes to a product with a vector of the probes `v`."""
    # `rounding` is the sum of the squared errors of all probes.
    spread = np.sqrt(rounding * (v**2).mean(-1))
    return Estimate(product.value, np.hypot(product.stderr, spread))


def along(
    known: Known, point: Located, directions: FloatArray, origin: FloatArray
) -> Estimate:
    """Return <x - origin, e> for known directions e (direction, iterate), (direction,)."""
    # `origin` holds the weights of a known vector, (iterate,).
    value = directions @ known.gram @ (point.weights - origin)
    on_frame = directions @ known.gram @ point.frame.T
    rest = directions - on_frame @ point.frame
    rest_sq = np.maximum(((rest @ known.gram) * rest).sum(1), 0)
    probes = rest @ known.probes
    left = np.broadcast_to(point.left_probes, probes.shape)
    product = scaled_cosine(rest_sq, probes, point.left_sq, left)
    product = with_rounding(product, point.rounding, probes)
    by_advance = point.advance_error * np.abs(on_frame[:, -1])
    return Estimate(value + product.value, np.hypot(product.stderr, by_advance))
