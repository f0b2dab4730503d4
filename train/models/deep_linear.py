"""Networks of linear layers alone, from given weights."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def stack(
    weights: Sequence[Tensor], activation: Callable[[], nn.Module] | None = None
) -> nn.Sequential:
    """Return a network of linear layers without biases.

    Parameters
    ----------
    weights : sequence of torch.Tensor
        Of the layers, shapes ``(n_out, n_in)``, the first one first.
    activation : callable, optional
        Makes what lies between two layers. Default: nothing, so that the network is
        ``y = W_L ... W_1 x``.

    Returns
    -------
    torch.nn.Sequential
        Maps inputs (N, n_in) to outputs (N, n_out).
    """
    layers: list[nn.Module] = []
    for weight in weights:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = nn.Parameter(weight.clone())
        layers.append(layer)
        if activation is not None:
            layers.append(activation())
    return nn.Sequential(*layers[: len(layers) - (activation is not None)])


def aligned_weights(
    correlation: Tensor, *, depth: int, width: int, initial: float
) -> list[Tensor]:
    r"""Return balanced weights that are diagonal in the singular bases of a matrix.

    With U and V the singular vectors of the matrix, as many as it has rows or columns, and
    :math:`R_1, ..., R_{L-1}` random matrices with orthonormal columns,

    .. math:: W_1 = s R_1 V^T, \quad W_l = s R_l R_{l-1}^T, \quad W_L = s U R_{L-1}^T,

    so that :math:`W_{l+1}^T W_{l+1} = W_l W_l^T` and the product is
    :math:`s^L U V^T`.

    Parameters
    ----------
    correlation : torch.Tensor
        The matrix, shape ``(n_out, n_in)``.
    depth : int
        Layers L, at least 1.
    width : int
        Of the layers between; at least as much as there are singular vectors.
    initial : float
        :math:`s^L`, every singular value of the product.

    Returns
    -------
    list of torch.Tensor
        float32, the first layer first; drawn from torch's random stream.

    Raises
    ------
    ValueError
        If `width` is too small.
    """
    left, _, right = torch.linalg.svd(correlation.double(), full_matrices=False)
    n_modes = left.shape[1]
    if width < n_modes:
        raise ValueError(
            f"A width of {width} cannot hold {n_modes} singular modes; expected at least "
            f"{n_modes}."
        )
    between = [orthonormal(width, n_modes) for _ in range(depth - 1)]
    bases = [right.T, *between, left]
    s = initial ** (1 / depth)
    return [(s * out @ into.T).float() for into, out in pairwise(bases)]


def random_weights(widths: Sequence[int], *, initial: float) -> list[Tensor]:
    """Return weights of independent normal entries.

    Parameters
    ----------
    widths : sequence of int
        Of inputs, layers and outputs.
    initial : float
        Factor by which the product changes the length of a vector on the average, if
        all widths are one: its root of order L, over the root of ``n_in``, is the
        deviation of the entries of each of L layers.

    Returns
    -------
    list of torch.Tensor
        float32, the first layer first; drawn from torch's random stream.
    """
    scale = initial ** (1 / (len(widths) - 1))
    return [
        scale * torch.randn(n_out, n_in) / n_in**0.5 for n_in, n_out in pairwise(widths)
    ]


def orthonormal(
    n_rows: int, n_columns: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw a matrix with orthonormal columns, float64."""
    normal = torch.randn(n_rows, n_columns, generator=generator, dtype=torch.float64)
    columns: Tensor = torch.linalg.qr(normal)[0]
    return columns
