"""Errors of products that fixed random probes tell, and how they correlate from step to step.

With probes P, the error of a product <p, q> is E(p, q) = <P p, P q> - <p, q>. For vectors spread
over many elements these errors are Gaussian, and n E(p, q) and n E(p', q') have the covariance
<p, p'> <q, q'> + <p, q'> <q, p'>. The estimates of `displacement_product` divide such products by
the norms of probes; to first order their errors are sums of a few E, whose covariances follow from the
directions of the displacements.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

MAX_GROUPS: Final = 1024
"""Largest number of groups of neighbouring steps whose directions are compared."""


class Forms(NamedTuple):
    """Coefficients of the errors E that add up to the error of <a, v>, each (step,)."""

    # With unit vectors f, e and v along the displacement at the window's end, the rest of a step's
    # displacement, and the rest of v; f is orthogonal to e and v, and `cosine` is <e, v>. Numbers
    # of probes are a part of the coefficients.
    along: FloatArray  # of E(f, f) - E(e, e)
    across: FloatArray  # of E(e, f)
    mixed: FloatArray  # of E(e, v) - cosine (E(e, e) + E(v, v)) / 2
    cosine: FloatArray

    def variance(self) -> FloatArray:
        """Return the variance of the error of every step, (step,)."""
        along, across, mixed, cosine = self
        rest = 1 - cosine**2
        whole = 4 * along**2 + across**2 + np.square(mixed * rest)
        result: FloatArray = np.maximum(whole - 2 * along * mixed * cosine * rest, 0)
        return result

    def covariance(self, alike: FloatArray) -> FloatArray:
        """Return the covariances of all pairs of steps; `alike` are the products of their e."""
        along, across, mixed, cosine = self
        of_v = -mixed * cosine / 2
        of_e = of_v - along
        turned = np.outer(cosine * of_e, mixed)
        crossed = np.outer(cosine**2 * of_e, of_v)
        total = np.outer(across, across) + np.outer(mixed, mixed)
        total += 2 * (turned + turned.T) + 2 * alike * np.outer(of_e, of_e)
        total *= alike
        total += 2 * (crossed + crossed.T + np.outer(along, along))
        result: FloatArray = total - 2 * np.outer(of_v, of_v)
        return result


class Correlation(NamedTuple):
    """Correlations of the errors of different steps, which groups of neighbours share."""

    matrix: FloatArray  # of the shared parts, (group, group)
    group_steps: int
    alone: FloatArray  # share of the variance that no other step has, (step,)


def correlation_of(
    vectors: FloatArray, alone: FloatArray | float = 0.0, forms: Forms | None = None
) -> Correlation:
    """Return how errors of products correlate, from the probes of vectors, (step, probe)."""
    # The error of a product that is linear in a vector, without `forms`, correlates like the
    # directions of the vectors. `alone` (step,) are the shares of errors' variances that other steps
    # do not share; a vector that is 0 or not finite shares nothing.
    n = len(vectors)
    steps = -(-n // MAX_GROUPS)
    chosen = np.minimum(np.arange(0, n, steps) + steps // 2, n - 1)
    some = vectors[chosen]
    lengths = np.linalg.norm(some, axis=1)
    is_known = np.isfinite(lengths) & (lengths > 0)
    some = np.where(is_known[:, None], some, 0)
    some /= np.where(is_known, lengths, 1)[:, None]
    matrix: FloatArray = some @ some.T
    if forms is not None:
        groups = Forms(*(np.nan_to_num(values[chosen]) for values in forms))
        matrix = groups.covariance(matrix)
        sizes = np.sqrt(np.maximum(np.diagonal(matrix), 0))
        inverse = np.divide(1, sizes, out=np.zeros_like(sizes), where=sizes > 0)
        matrix *= inverse[:, None] * inverse
    shares = np.broadcast_to(np.asarray(alone, np.float64), (n,))
    known = np.repeat(np.diagonal(matrix) > 0, steps)[:n]
    return Correlation(matrix, steps, np.where(known, np.nan_to_num(shares), 1.0))


def correlated(correlation: Correlation, errors: FloatArray) -> FloatArray:
    """Multiply errors (step, ...) by the correlations of the steps."""
    matrix, steps, alone = correlation
    flat = errors.reshape(len(errors), -1)
    shares = np.sqrt(1 - alone)[:, None]
    shared = shares * flat
    if steps > 1:
        starts = np.arange(0, len(flat), steps)
        groups = matrix @ np.add.reduceat(shared, starts, axis=0)
        shared = np.repeat(groups, steps, axis=0)[: len(flat)]
    else:
        shared = matrix @ shared
    result: FloatArray = shares * shared + alone[:, None] * flat
    return result.reshape(errors.shape)
