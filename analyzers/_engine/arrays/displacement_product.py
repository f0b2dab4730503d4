"""Estimate inner products of recorded displacements with a known vector.

The norm of a displacement `a` = x - r and its products with the basis are known exactly.
The part of `a` that the basis does not explain is compared with the known vector v through
fixed random probes (`trajstore.sketch.probes`). The displacement f from the anchor r to the
next anchor is also known exactly, and `a` grows mostly along f. Only the part of `a`
orthogonal to f carries the error of the probes, and this part vanishes at window borders.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.collisions import (
    Collisions,
    inverse_counts,
    rounding_variance,
)
from analyzers._engine.arrays.geometry import Estimate
from analyzers._engine.arrays.low_rank import regress

FloatArray = npt.NDArray[np.floating[Any]]

N_SPREADS: Final = 64
"""Number of standard deviations of cosines that are compared."""

DIRECTIONS: Final = 64
"""Largest number of steps whose directions are compared, up to rounding."""


class ProbedVectors(NamedTuple):
    """Inner products and probes of one vector, or of one vector per step."""

    sq: FloatArray  # squared norms, (...)
    on_basis: FloatArray  # inner products with the basis, (..., basis)
    probes: FloatArray  # fixed random projections, (..., probe)


class Product(NamedTuple):
    """Estimates of <a, v>, and the terms that `layer_products` needs."""

    # The rest of `a` or v is its part orthogonal to the basis and to f.
    estimate: Estimate  # <a, v>, (step,)
    a_on_basis: FloatArray  # coefficients of a on the basis, (step, basis)
    f_on_basis: FloatArray  # coefficients of f on the basis, (basis,)
    advance: FloatArray  # coefficient of a along f, after removing the basis, (step,)
    aside: FloatArray  # norm of the rest of a, (step,)
    share: FloatArray  # of `aside` in the norm of a without the basis, (step,)
    aside_probes: FloatArray  # probes of the rest of a, (step, probe)
    probes: FloatArray  # probes of a, (step, probe)
    cosine: FloatArray  # between the rest of a and the rest of v, (step,)
    counts: FloatArray  # `inverse_counts` of the rest of a, (step, row); (0, 0) if not known


def displacement_product(
    a: ProbedVectors,
    basis: ProbedVectors,
    f: ProbedVectors,
    v: ProbedVectors,
    f_dot_v: float,
    collisions: Collisions | None = None,
    *,
    has_end: bool = False,
) -> Product:
    """Estimate products of displacements `a` with a vector v orthogonal to the basis."""
    # ``basis.on_basis`` is the Gram matrix. The standard error combines the errors of the
    # cosine and of the advance; each falls with the square root of the number of probes.
    a_on_basis, a_rest = _remove_basis(basis, a)
    f_on_basis, f_rest = _remove_basis(basis, f)
    norms = np.linalg.norm(a_rest.probes, axis=-1) * np.linalg.norm(f_rest.probes)
    along = np.clip(_ratio(a_rest.probes @ f_rest.probes, norms), -1, 1)
    advance = along * np.sqrt(_ratio(a_rest.sq, f_rest.sq))
    aside_probes = a_rest.probes - advance[:, None] * f_rest.probes
    aside = np.sqrt(np.maximum(a_rest.sq - advance**2 * f_rest.sq, 0))
    share = _ratio(f_dot_v, f_rest.sq)
    v_probes = v.probes - share * f_rest.probes
    v_aside = np.sqrt(np.maximum(v.sq - share**2 * f_rest.sq, 0))
    norms = np.linalg.norm(aside_probes, axis=-1) * np.linalg.norm(v_probes)
    cosine = np.clip(_ratio(aside_probes @ v_probes, norms), -1, 1)
    cosine_error = aside * v_aside * (1 - cosine**2)
    v_along = _ratio(abs(f_dot_v), np.sqrt(f_rest.sq))
    advance_error = np.sqrt(a_rest.sq) * (1 - along**2) * v_along
    counts: FloatArray = np.zeros((0, 0))
    if collisions is None:
        stderr = np.hypot(cosine_error, advance_error) / np.sqrt(v.probes.shape[-1])
    else:
        left = _rounding_sq(aside, has_end=has_end)
        counts = inverse_counts(a_rest.probes, collisions, _share(left, a_rest.sq))
        by_advance = counts[:, 0] * advance_error**2
        counts = inverse_counts(aside_probes, collisions, _share(left, aside**2))
        by_cosine = counts[:, 1] * cosine_error**2
        to_advance = _ratio(v_along**2, f_rest.sq) * f_rest.probes**2
        rounded = rounding_variance(a.probes, np.sqrt(v_probes**2 + to_advance))
        stderr = np.sqrt(by_advance + by_cosine + rounded)
    value = advance * f_dot_v + aside * v_aside * cosine
    if collisions is not None:
        # The regression on the basis leaves v slightly oblique to the basis.
        value += (a_on_basis - advance[:, None] * f_on_basis) @ v.on_basis
    return Product(
        Estimate(value, stderr),
        a_on_basis,
        f_on_basis,
        advance,
        aside,
        _ratio(aside, np.sqrt(a_rest.sq)),
        aside_probes,
        a.probes,
        cosine,
        counts,
    )


def layer_products(
    whole: Product,
    *,
    a_sq: FloatArray,
    a_dot_basis: FloatArray,
    f_sq: FloatArray,
    f_dot_basis: FloatArray,
    f_dot_v: FloatArray,
    v_sq: FloatArray,
    v_dot_basis: FloatArray,
    v_probes: FloatArray,
    gram: FloatArray,
    sizes: npt.NDArray[np.floating[Any]],
    collisions: Collisions | None = None,
) -> Estimate:
    """Estimate the products <a, v> layer by layer, (step, layer)."""
    # `a_sq` (step, layer), `a_dot_basis` (step, layer, basis); `f_sq`, `f_dot_v`, `v_sq`
    # (layer,), `f_dot_basis`, `v_dot_basis` (layer, basis), `v_probes` (layer, probe), `gram`
    # (layer, basis, basis), and `sizes` are the numbers of elements (layer,).
    # The probes of `a` cover all layers, so products with a small layer of v are noisy. A
    # normal prior therefore draws the cosine of each layer towards the cosine of the whole
    # vectors, which biases the estimate. The layers of the window tell how far cosines differ.
    a_rest = _layer_rest_sq(a_sq, a_dot_basis, gram, whole.a_on_basis[:, None])
    f_rest = _layer_rest_sq(f_sq, f_dot_basis, gram, whole.f_on_basis)
    aside = np.sqrt(np.abs(a_rest - whole.advance[:, None] ** 2 * f_rest))
    # The layer need not advance along f like the whole, so the difference may vanish by chance.
    aside = np.maximum(aside, whole.share[:, None] * np.sqrt(a_rest))
    length = np.sqrt(v_sq)
    probed = whole.aside_probes @ v_probes.T
    noise = np.square(whole.aside[:, None] * length) / v_probes.shape[-1]
    if collisions is not None:
        counts = whole.counts[:, 2:]
        noise = np.square(whole.aside[:, None] * length) * counts
        noise += rounding_variance(whole.probes, v_probes)
    norms = aside * length
    # If the cosines of all layers were equal, they would be this.
    along = whole.advance * f_dot_v.sum()
    cosine = _ratio(whole.estimate.value - along, norms.sum(1))
    expected = cosine[:, None] * norms
    unit = np.square(norms)
    # The whole cosine is the mean of the layers' cosines, with these weights. Vectors of n
    # elements have cosines of at least 1 / sqrt(n) by chance.
    told = np.isfinite(probed + expected + noise).all(1) & (whole.aside > 0)
    weights = _mean(_ratio(norms, norms.sum(1, keepdims=True)), told)
    scale = np.square(1 - weights) + np.square(weights).sum() - weights**2
    by_chance = scale / np.maximum(sizes, 1)
    variance = cosine_spread(
        _mean(_ratio(np.square(probed - expected), unit), told),
        by_chance + _mean(_ratio(noise, unit), told),
        scale,
        _independent(whole.aside_probes[told]),
    )
    spread = (variance * scale + by_chance) * unit
    trust = _ratio(spread, spread + noise)
    shared_variance = np.square(_ratio(whole.estimate.stderr, norms.sum(1)))
    if collisions is not None:
        # No prior is needed where every element has a probe of its own.
        trust = np.where(counts == 0, 1.0, trust)
    value = whole.advance[:, None] * f_dot_v + expected + trust * (probed - expected)
    if collisions is not None:
        removed = whole.a_on_basis - whole.advance[:, None] * whole.f_on_basis
        value += removed @ v_dot_basis.T
    shared = np.square(1 - trust) * shared_variance[:, None] * unit
    return Estimate(value, np.sqrt(trust * noise + shared))


def cosine_spread(
    differences_sq: FloatArray, noise: FloatArray, scale: FloatArray, count: float
) -> float:
    """Return the expected variance of the layers' cosines, which may be anything from 0 to 1."""
    # Differences of layers' cosines from the cosine of the whole vectors, each known `count`
    # times, have the variance `scale` times the result, plus `noise`; all are (layer,). The
    # standard deviation is taken to be even between 0 and 1 before they are known.
    deviations = (np.arange(N_SPREADS) + 0.5) / N_SPREADS
    variance = deviations[:, None] ** 2 * scale + noise
    known = (scale > 0) & (variance > 0).all(0)
    variance, squares = variance[:, known], differences_sq[known]
    fit = -count / 2 * (np.log(variance) + squares / variance).sum(1)
    weights = np.exp(fit - fit.max())
    return float((weights * deviations**2).sum() / weights.sum())


def _independent(directions: FloatArray) -> float:
    """Return the number of independent directions among vectors (step, probe)."""
    # Of long windows, a part of the steps tells enough.
    some = directions[:: max(1, len(directions) // DIRECTIONS)]
    if not len(some):
        return 1.0
    unit = _ratio(some, np.linalg.norm(some, axis=1, keepdims=True))
    return float(len(unit) ** 2 / max(np.square(unit @ unit.T).sum(), 1))


def _rounding_sq(aside: FloatArray, *, has_end: bool) -> FloatArray:
    """Return the energy that rounding errors of anchors have in the rest of displacements, (step,)."""
    # The first row is all rounding error, and so is the last one if it is the window's end.
    ends = aside[[0, -1 if has_end else 0]] ** 2
    # A lost row has no energy; that of the other end will do.
    is_known = np.isfinite(ends)
    first, last = np.where(is_known, ends, ends[is_known].max(initial=0))
    return np.linspace(first, last, len(aside))


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    """Return shares from 0 to 1."""
    share: FloatArray = np.minimum(_ratio(part, whole), 1)
    return share


def _mean(values: FloatArray, rows: npt.NDArray[np.bool_]) -> FloatArray:
    """Return the mean of some rows, 0 of none."""
    total: FloatArray = values[rows].sum(0) / max(int(rows.sum()), 1)
    return total


def _remove_basis(
    basis: ProbedVectors, vectors: ProbedVectors
) -> tuple[FloatArray, ProbedVectors]:
    """Return the coefficients of vectors on the basis, and the unexplained parts."""
    coefficients = regress(basis.on_basis, vectors.on_basis)
    rest = ProbedVectors(
        np.maximum(vectors.sq - (coefficients * vectors.on_basis).sum(-1), 0),
        vectors.on_basis - coefficients @ basis.on_basis,
        vectors.probes - coefficients @ basis.probes,
    )
    return coefficients, rest


def _layer_rest_sq(
    sq: FloatArray, dot_basis: FloatArray, gram: FloatArray, coefficients: FloatArray
) -> FloatArray:
    """Return the squared norms, by layer, of vectors minus a combination of the basis."""
    mixed = (dot_basis * coefficients).sum(-1)
    own = ((gram @ coefficients[..., None])[..., 0] * coefficients).sum(-1)
    rest: FloatArray = np.maximum(sq - 2 * mixed + own, 0)
    return rest


def _ratio(numerator: Any, denominator: Any) -> Any:
    """Divide, with a result of 0 where the denominator is 0."""
    out = np.zeros(np.broadcast(numerator, denominator).shape)
    return np.divide(numerator, denominator, out=out, where=denominator != 0)
