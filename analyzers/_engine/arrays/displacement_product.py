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

from analyzers._engine.arrays.collisions import Collisions, inverse_counts
from analyzers._engine.arrays.geometry import Estimate
from analyzers._engine.arrays.low_rank import regress
from analyzers._engine.arrays.probe_errors import (
    Correlation,
    Forms,
    correlated,
    correlation_of,
)

FloatArray = npt.NDArray[np.floating[Any]]

N_SPREADS: Final = 64
"""Number of standard deviations of cosines that are compared."""

DIRECTIONS: Final = 64
"""Largest number of steps whose directions are compared, up to rounding."""

PRIOR_ODDS: Final = 1 / 3
"""Variance that is guessed, over the variance that is measured, in products of single layers."""


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
    rounding: FloatArray  # variance of the rounding of the probes of a, (step, probe)
    rounded: FloatArray  # the variance that they cause in the estimate, (step,)
    cosine: FloatArray  # between the rest of a and the rest of v, (step,)
    counts: FloatArray  # `inverse_counts` of the rest of a, (step, row); (0, 0) if not known
    forms: Forms  # how the errors of probes add up to the error of <a, v>

    @property
    def alone(self) -> FloatArray:
        """Share of rounding errors in the variance, which are independent between steps, (step,)."""
        return _share(self.rounded, np.square(self.estimate.stderr))

    def correlation(self, steps: Any, *, of_layers: bool) -> Correlation:
        """Return how the errors of some steps correlate, of <a, v> or of its parts by layer."""
        # A product with a layer is linear in the rest of `a`, because nothing divides it.
        forms = None if of_layers else Forms(*(c[steps] for c in self.forms))
        return correlation_of(self.aside_probes[steps], self.alone[steps], forms)


class LayerProducts(NamedTuple):
    """Estimates of <a, v> by layer, and how their errors correlate."""

    estimate: Estimate  # (step, layer)
    # The part of the errors that is one random number for all steps; the rest of the errors
    # correlates like the directions of the rest of a. (step, layer)
    common: FloatArray
    measured: Estimate  # without what is usual of cosines: noisy and unbiased


def displacement_product(
    a: ProbedVectors,
    basis: ProbedVectors,
    f: ProbedVectors,
    v: ProbedVectors,
    f_dot_v: float,
    collisions: Collisions | None = None,
    *,
    rounding: FloatArray | float = 0.0,
    has_end: bool = False,
) -> Product:
    """Estimate products of displacements `a` with a vector v orthogonal to the basis."""
    # ``basis.on_basis`` is the Gram matrix. The standard error combines the errors of the
    # cosine, of the advance, and of the length that the advance leaves.
    # `rounding` (step, probe) are the variances of rounding errors of the probes of `a`.
    rounding = np.broadcast_to(rounding, a.probes.shape)
    a_on_basis, a_rest = _remove_basis(basis, a)
    f_on_basis, f_rest = _remove_basis(basis, f)
    norms = np.linalg.norm(a_rest.probes, axis=-1) * np.linalg.norm(f_rest.probes)
    along = np.clip(_ratio(a_rest.probes @ f_rest.probes, norms), -1, 1)
    advance = along * np.sqrt(_ratio(a_rest.sq, f_rest.sq))
    # Probes of many steps take most of the memory, so differences replace what is subtracted.
    aside_probes = advance[:, None] * f_rest.probes
    np.subtract(a_rest.probes, aside_probes, out=aside_probes)
    aside = np.sqrt(np.maximum(a_rest.sq - advance**2 * f_rest.sq, 0))
    if collisions is not None:
        # The regression on the basis leaves v slightly oblique to the basis.
        f_dot_v = float(f_dot_v - f_on_basis @ v.on_basis)
    share = _ratio(f_dot_v, f_rest.sq)
    v_probes = v.probes - share * f_rest.probes
    v_aside = np.sqrt(np.maximum(v.sq - share**2 * f_rest.sq, 0))
    norms = np.linalg.norm(aside_probes, axis=-1) * np.linalg.norm(v_probes)
    cosine = np.clip(_ratio(aside_probes @ v_probes, norms), -1, 1)
    rounded = np.zeros(len(a.probes))
    counts: FloatArray = np.zeros((0, 0))
    by_advance = by_cosine = np.full(len(a.probes), 1 / v.probes.shape[-1])
    if collisions is not None:
        left = _rounding_sq(aside, has_end=has_end)
        by_advance = inverse_counts(a_rest.probes, collisions, _share(left, a_rest.sq))
        by_advance = by_advance[:, 0]
        counts = inverse_counts(aside_probes, collisions, _share(left, aside**2))
        by_cosine = counts[:, 1]
        weights = _rounding_weights(
            a_rest,
            f_rest,
            aside_probes,
            v_probes,
            share,
            aside,
            advance,
            cosine * v_aside,
        )
        rounded = (rounding * weights**2).sum(1)
    # An advance that is too long by an error leaves an `aside` that is too short.
    turn = _ratio(aside, np.sqrt(a_rest.sq))
    slope = turn * _ratio(f_dot_v, np.sqrt(f_rest.sq)) - along * v_aside * cosine
    by_length = np.sqrt(by_advance) * aside * slope
    forms = Forms(
        along * by_length / 2,
        turn * by_length,
        np.sqrt(by_cosine) * aside * v_aside,
        cosine,
    )
    stderr = np.sqrt(forms.variance() + rounded)
    value = advance * f_dot_v + aside * v_aside * cosine
    if collisions is not None:
        value += a_on_basis @ v.on_basis
    return Product(
        Estimate(value, stderr),
        a_on_basis,
        f_on_basis,
        advance,
        aside,
        turn,
        aside_probes,
        rounding,
        rounded,
        cosine,
        counts,
        forms,
    )


def _rounding_weights(
    a: ProbedVectors,
    f: ProbedVectors,
    aside_probes: FloatArray,
    v_probes: FloatArray,
    share: FloatArray,
    aside: FloatArray,
    advance: FloatArray,
    along_aside: FloatArray,  # the component of v along the rest of `a`, (step,)
) -> FloatArray:
    """Return the derivative of the product by the probes of `a`, (step, probe)."""
    # The norms of `a` and of its rest are exact, so errors along these vectors do not count.
    slope = _ratio(along_aside, aside)
    length = np.linalg.norm(aside_probes, axis=-1)
    shrunk = np.minimum(_ratio(aside, length), 1)
    by_aside = v_probes - slope[:, None] * aside_probes
    by_advance = f.probes - _ratio(advance * f.sq, a.sq)[:, None] * a.probes
    derivative: FloatArray = shrunk[:, None] * by_aside
    derivative += (share - advance * slope)[:, None] * by_advance
    return derivative


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
    total: Estimate | None = None,
    collisions: Collisions | None = None,
) -> LayerProducts:
    """Estimate the products <a, v> layer by layer, (step, layer)."""
    # `a_sq` (step, layer), `a_dot_basis` (step, layer, basis); `f_sq`, `f_dot_v`, `v_sq`
    # (layer,), `f_dot_basis`, `v_dot_basis` (layer, basis), `v_probes` (layer, probe), `gram`
    # (layer, basis, basis), and `sizes` are the numbers of elements (layer,). `total` (layer,) is
    # the sum of the products over the steps, if it is known; the result does not meet it yet.
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
        noise += whole.rounding @ np.square(v_probes).T
    norms = aside * length
    # If the cosines of all layers were equal, they would be this.
    along = whole.advance * f_dot_v.sum()
    cosine = _ratio(whole.estimate.value - along, norms.sum(1))
    expected = cosine[:, None] * norms
    unit = np.square(norms)
    # The whole cosine is the mean of the layers' cosines, with these weights. Vectors of n
    # elements have cosines of at least 1 / sqrt(n) by chance, and larger ones if they lie in few
    # directions, as their cosines with past displacements show.
    of_whole = _ratio(norms, norms.sum(1, keepdims=True))
    told = np.isfinite(probed + expected + noise).all(1) & (whole.aside > 0)
    weights = _mean(of_whole, told)
    scale = np.square(1 - weights) + np.square(weights).sum() - weights**2
    usual = _known_cosines_sq(whole, a_dot_basis, f_dot_basis, gram, aside, told)
    by_chance = np.maximum(scale / np.maximum(sizes, 1), np.minimum(usual, scale))
    shared = np.square(_ratio(whole.estimate.stderr, norms.sum(1)))[:, None] * unit
    # The error of the whole is the sum of the errors of all layers, so it is a part of the error of a
    # layer's own probes: that of a layer with most of the norm is the same error.
    root = np.sqrt(noise)
    tied = of_whole * root * np.minimum(root, whole.estimate.stderr[:, None])
    by_step = whole.advance[:, None] * f_dot_v + expected
    if total is not None and np.isfinite(by_step + probed).all():
        correlation = correlation_of(whole.aside_probes)
        prior = _prior_of_sum(
            total,
            by_step,
            norms,
            shared,
            correlation,
            scale=scale,
            by_chance=by_chance,
        )
        measured = _left(root * correlated(correlation, root), noise, total.stderr**2)
    else:
        variance = cosine_spread(
            _mean(_ratio(np.square(probed - expected), unit), told),
            by_chance + _mean(_ratio(noise + shared - 2 * tied, unit), told),
            scale,
            _independent(whole.aside_probes[told]),
        )
        left = (variance * scale + by_chance) * unit
        prior = Prior(shared + left, np.zeros_like(norms), shared + left, left)
        measured = noise
    # The best weight of the probes makes most of the error that of the prior, whose size is
    # guessed, and differs between layers. Enough weight leaves it a small part of the variance.
    still_tied = tied * _ratio(measured, noise)
    gain, spread = prior.left - still_tied, prior.left + measured - 2 * still_tied
    best = np.clip(_ratio(gain, spread), 0, 1)
    odds = np.sqrt(_ratio(prior.guessed, PRIOR_ODDS * measured))
    trust = np.maximum(best, odds / (1 + odds))
    if collisions is not None:
        # No prior is needed where every element has a probe of its own.
        trust = np.where(counts == 0, 1.0, trust)
        removed = whole.a_on_basis - whole.advance[:, None] * whole.f_on_basis
        by_step = by_step + removed @ v_dot_basis.T
    value = by_step + trust * (probed - expected)
    common = (1 - trust) * prior.common
    variance = np.square(1 - trust) * prior.turning + trust**2 * noise + common**2
    variance += 2 * trust * (1 - trust) * tied
    alone = Estimate(by_step + probed - expected, np.sqrt(noise))
    return LayerProducts(Estimate(value, np.sqrt(variance)), common, alone)


class Prior(NamedTuple):
    """Variances of products of layers before their probes are known, (step, layer)."""

    turning: FloatArray  # of the part that correlates like the directions of the steps
    common: FloatArray  # standard deviation of the part that all steps share
    left: FloatArray  # the variance that is left if the sum is met
    guessed: FloatArray  # the part of `left` that would be left if the sum were exact


def _prior_of_sum(
    total: Estimate,
    expected: FloatArray,
    norms: FloatArray,
    shared: FloatArray,
    correlation: Correlation,
    *,
    scale: FloatArray,
    by_chance: FloatArray,
) -> Prior:
    """Return how far the products may be from `expected`, (step, layer), given their sum."""
    # The sum of a layer tells how far its mean cosine is from the expected one; the layers together
    # tell how far cosines usually are. Half of their variance is taken to be the same in all steps
    # of the window, and half of it to turn like the displacements of all layers.
    path = norms.sum(0)
    turning = _ratio((norms * correlated(correlation, norms)).sum(0), path**2)
    known = np.square(_ratio(total.stderr, path))
    of_whole = _mean(_ratio(shared, np.square(norms)), norms.sum(1) > 0)
    found = np.square(_ratio(total.value - expected.sum(0), path))
    noise = (by_chance + of_whole) * turning + known
    unit = scale * (1 + turning) / 2
    usual = cosine_spread(found, noise, unit, 1.0)
    # What is found of the layer itself counts as much as what is usual.
    own_spread = np.clip(_ratio(found - noise, unit), 0, 1)
    variance = (usual + own_spread) / 2
    half = variance / 2 * scale
    own = (half + by_chance) * np.square(norms) + shared
    common = np.sqrt(half) * norms
    root = np.sqrt(own)
    mixed = root * correlated(correlation, root) + common * common.sum(0)
    variance = own + common**2
    left = _left(mixed, variance, total.stderr**2)
    return Prior(own, common, left, _left(mixed, variance, 0.0))


def _left(
    mixed: FloatArray, variance: FloatArray, sum_variance: FloatArray | float
) -> FloatArray:
    """Return the variances of steps that are left if a sum over the steps is met, (step, layer)."""
    # `mixed` are the covariances of the steps with their sum, which is known with an error.
    explained = _ratio(np.square(mixed), mixed.sum(0) + sum_variance)
    left: FloatArray = np.maximum(variance - explained, 0)
    return left


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


def _known_cosines_sq(
    whole: Product,
    a_dot_basis: FloatArray,  # (step, layer, basis)
    f_dot_basis: FloatArray,  # (layer, basis)
    gram: FloatArray,  # (layer, basis, basis)
    aside: FloatArray,  # (step, layer)
    steps: npt.NDArray[np.bool_],
) -> FloatArray:
    """Return the mean squared cosines of the rest of `a` with past displacements, (layer,)."""
    # The whole rest of `a` is orthogonal to them; how far layers are from that is known exactly.
    # The first vector of the basis is the anchor, and no displacement.
    own = a_dot_basis - np.einsum("lij,kj->kli", gram, whole.a_on_basis)
    of_f = f_dot_basis - gram @ whole.f_on_basis
    rest = (own - whole.advance[:, None, None] * of_f)[steps, :, 1:]
    lengths = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1)[:, 1:])
    cosines = np.clip(_ratio(rest, aside[steps, :, None] * lengths), -1, 1)
    count = np.maximum((lengths > 0).sum(-1), 1)
    squares: FloatArray = np.square(cosines).sum(-1)
    mean: FloatArray = squares.sum(0) / (count * max(len(cosines), 1))
    return mean


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
    explained = coefficients @ basis.probes
    rest = ProbedVectors(
        np.maximum(vectors.sq - (coefficients * vectors.on_basis).sum(-1), 0),
        vectors.on_basis - coefficients @ basis.on_basis,
        np.subtract(vectors.probes, explained, out=explained),
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
