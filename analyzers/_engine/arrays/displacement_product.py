"""Inner products of recorded displacements with a known vector.

Of a displacement a = x - r its norm and its products with the basis are known exactly.
What is left of it beside the basis is compared with the known vector v through fixed
random probes (`trajstore.sketch.probes`). The displacement f from this reference to the next,
also known exactly, is the direction in which a mostly grows: only the part of a aside of
it carries the error of the probes, and there is none at the borders of a window.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.geometry import Estimate
from analyzers._engine.arrays.low_rank import regress

FloatArray = npt.NDArray[np.floating[Any]]

LAYER_SPREAD: Final = 0.3
"""How far the cosine of one tensor may be from that of all, a priori: our own choice."""


class Known(NamedTuple):
    """What is known of some vectors: ``...`` is empty for one, ``step`` for many.

    Attributes
    ----------
    sq : numpy.ndarray
        Squared norms, shape ``(...)``.
    on_basis : numpy.ndarray
        Inner products with the basis, shape ``(..., basis)``.
    probes : numpy.ndarray
        Probes, shape ``(..., probe)``.
    """

    sq: FloatArray
    on_basis: FloatArray
    probes: FloatArray


class Product(NamedTuple):
    """Estimates of <a, v>, and how they came about.

    Attributes
    ----------
    estimate : Estimate
        <a, v>, shape ``(step,)``.
    a_on_basis : numpy.ndarray
        Coefficients of a on the basis, shape ``(step, basis)``.
    f_on_basis : numpy.ndarray
        Coefficients of f on the basis, shape ``(basis,)``.
    advance : numpy.ndarray
        Coefficient of a along f, beside the basis, shape ``(step,)``.
    aside : numpy.ndarray
        Norm of what is left of a, shape ``(step,)``.
    aside_probes : numpy.ndarray
        Probes of what is left of a, shape ``(step, probe)``.
    cosine : numpy.ndarray
        Between what is left of a and what is left of v, shape ``(step,)``.
    """

    estimate: Estimate
    a_on_basis: FloatArray
    f_on_basis: FloatArray
    advance: FloatArray
    aside: FloatArray
    aside_probes: FloatArray
    cosine: FloatArray


def displacement_product(
    a: Known, basis: Known, f: Known, v: Known, f_dot_v: float
) -> Product:
    """Estimate inner products with a vector that is orthogonal to the basis.

    Parameters
    ----------
    a : Known
        The displacements of many steps.
    basis : Known
        The basis; its ``on_basis`` is its Gram matrix.
    f : Known
        The displacement to the end of the window.
    v : Known
        The known vector.
    f_dot_v : float
        <f, v>.

    Returns
    -------
    Product
        The estimates; their standard error counts the errors of the cosine and of the
        advance, each of a vector seen in as many numbers as there are probes.
    """
    a_on_basis, a_left = _beside(basis, a)
    f_on_basis, f_left = _beside(basis, f)
    seen = np.linalg.norm(a_left.probes, axis=-1) * np.linalg.norm(f_left.probes)
    along = np.clip(_ratio(a_left.probes @ f_left.probes, seen), -1, 1)
    advance = along * np.sqrt(_ratio(a_left.sq, f_left.sq))
    aside_probes = a_left.probes - advance[:, None] * f_left.probes
    aside = np.sqrt(np.maximum(a_left.sq - advance**2 * f_left.sq, 0))
    share = _ratio(f_dot_v, f_left.sq)
    rest_probes = v.probes - share * f_left.probes
    rest = np.sqrt(np.maximum(v.sq - share**2 * f_left.sq, 0))
    lengths = np.linalg.norm(aside_probes, axis=-1) * np.linalg.norm(rest_probes)
    cosine = np.clip(_ratio(aside_probes @ rest_probes, lengths), -1, 1)
    of_cosine = aside * rest * (1 - cosine**2)
    of_advance = (
        np.sqrt(a_left.sq) * (1 - along**2) * _ratio(abs(f_dot_v), np.sqrt(f_left.sq))
    )
    stderr = np.hypot(of_cosine, of_advance) / np.sqrt(v.probes.shape[-1])
    value = advance * f_dot_v + aside * rest * cosine
    return Product(
        Estimate(value, stderr),
        a_on_basis,
        f_on_basis,
        advance,
        aside,
        aside_probes,
        cosine,
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
    v_probes: FloatArray,
    gram: FloatArray,
) -> Estimate:
    """Estimate the same products tensor by tensor.

    The probes of one tensor of v see the displacements of all tensors, so that small
    tensors are noisy. Each cosine is therefore drawn towards the one of all tensors, as
    a normal prior of width `LAYER_SPREAD` does; the estimate is not unbiased any more.

    Parameters
    ----------
    whole : Product
        The products over all tensors.
    a_sq, a_dot_basis : numpy.ndarray
        |a|^2 and <a, s>, shapes ``(step, layer)`` and ``(step, layer, basis)``.
    f_sq, f_dot_basis, f_dot_v, v_sq : numpy.ndarray
        |f|^2, <f, s>, <f, v> and |v|^2, shapes ``(layer,)`` and ``(layer, basis)``.
    v_probes : numpy.ndarray
        Probes of each tensor of v, shape ``(layer, probe)``.
    gram : numpy.ndarray
        Products of the basis, shape ``(layer, basis, basis)``.

    Returns
    -------
    Estimate
        Shape ``(step, layer)``.
    """
    a_left = _left_by_layer(a_sq, a_dot_basis, gram, whole.a_on_basis[:, None])
    f_left = _left_by_layer(f_sq, f_dot_basis, gram, whole.f_on_basis)
    aside = np.sqrt(np.abs(a_left - whole.advance[:, None] ** 2 * f_left))
    length = np.sqrt(v_sq)
    seen = whole.aside_probes @ v_probes.T
    noise = np.square(whole.aside[:, None] * length) / v_probes.shape[-1]
    expected = whole.cosine[:, None] * aside * length
    spread = np.square(LAYER_SPREAD * aside * length)
    trust = _ratio(spread, spread + noise)
    value = whole.advance[:, None] * f_dot_v + expected + trust * (seen - expected)
    return Estimate(value, np.sqrt(trust * noise))


def _beside(basis: Known, vectors: Known) -> tuple[FloatArray, Known]:
    """Remove the projection on the basis; return its coefficients and what is left."""
    coefficients = regress(basis.on_basis, vectors.on_basis)
    left = Known(
        np.maximum(vectors.sq - (coefficients * vectors.on_basis).sum(-1), 0),
        vectors.on_basis - coefficients @ basis.on_basis,
        vectors.probes - coefficients @ basis.probes,
    )
    return coefficients, left


def _left_by_layer(
    sq: FloatArray, dot_basis: FloatArray, gram: FloatArray, coefficients: FloatArray
) -> FloatArray:
    """Squared norms by layer of vectors less a combination of the basis."""
    mixed = (dot_basis * coefficients).sum(-1)
    own = ((gram @ coefficients[..., None])[..., 0] * coefficients).sum(-1)
    left: FloatArray = np.maximum(sq - 2 * mixed + own, 0)
    return left


def _ratio(numerator: Any, denominator: Any) -> Any:
    """Divide, with 0 for what is divided by 0."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    out = np.zeros(numerator.shape)
    return np.divide(numerator, denominator, out=out, where=denominator != 0)
