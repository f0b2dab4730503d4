"""Principal components of points that are given by their inner products."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]


class Components(NamedTuple):
    """Principal components of a set of points."""

    coordinates: FloatArray  # float64 (point, component)
    explained: FloatArray  # share of the variance, float64 (component,)
    # Direction of a component as a weighted sum of points, (point, component).
    weights: FloatArray
    is_known: npt.NDArray[
        np.bool_
    ]  # whether the products of a point are finite, (point,)


def principal_components(gram: FloatArray, n: int) -> Components:
    """Return the first `n` components of points with the inner products (point, point)."""
    # The origin of the products may be anywhere. Points whose products are not finite get
    # NaN, and the others are decomposed without them.
    known = np.isfinite(np.diagonal(gram))
    products = gram[np.ix_(known, known)]
    by_row = products.mean(0, keepdims=True) if len(products) else products
    centred = (
        products - by_row - by_row.T + products.mean() if len(products) else products
    )
    values, vectors = np.linalg.eigh(centred)
    first = slice(None, -n - 1, -1)
    values, vectors = np.maximum(values[first], 0), vectors[:, first]
    scales = np.sqrt(values)
    coordinates = np.full((len(gram), n), np.nan)
    explained, weights = np.full(n, np.nan), np.zeros((len(gram), n))
    found = slice(0, len(values))
    # The sign of a component is arbitrary: its largest coordinate is positive.
    vectors = vectors * _sign_of_largest(vectors)
    coordinates[known, found] = vectors * scales
    with np.errstate(divide="ignore", invalid="ignore"):
        explained[found] = values / np.trace(centred)
        weights[known, found] = np.where(scales > 0, vectors / scales, 0)
    return Components(coordinates, explained, weights, known)


def _sign_of_largest(vectors: FloatArray) -> FloatArray:
    """Return the sign of the largest element of every column, (column,)."""
    if not vectors.size:
        return np.ones(vectors.shape[1])
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], axis=0)[0]
    return np.where(largest < 0, -1.0, 1.0)
