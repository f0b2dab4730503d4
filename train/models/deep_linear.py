"""Networks of linear layers with given initial weights."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def stack(
    weights: Sequence[Tensor], activation: Callable[[], nn.Module] | None = None
) -> nn.Sequential:
    """Return layers with the given weights and no biases; put activations between them."""
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
    """Return balanced float32 weights, diagonal in the singular bases of a correlation."""
    left, _, right = torch.linalg.svd(correlation.double(), full_matrices=False)
    n_modes = left.shape[1]
    if width < n_modes:
        raise ValueError(
            f"A width of {width} cannot hold {n_modes} singular modes; expected at least "
            f"{n_modes}."
        )
    inner = [orthonormal(width, n_modes) for _ in range(depth - 1)]
    # Let U and V be the singular vectors, R_1, ..., R_(L-1) the orthonormal matrices, and
    # s^L = initial. Then W_1 = s R_1 V^T, W_l = s R_l R_(l-1)^T and W_L = s U R_(L-1)^T.
    # Therefore the weights are balanced, which means that W_(l+1)^T W_(l+1) = W_l W_l^T, and
    # the product of all layers is s^L U V^T.
    bases = [right.T, *inner, left]
    s = initial ** (1 / depth)
    return [(s * out @ into.T).float() for into, out in pairwise(bases)]


def random_weights(widths: Sequence[int], *, initial: float) -> list[Tensor]:
    """Return float32 weights with independent normal entries, in the order of layers."""
    # If all widths are equal, the product of all layers multiplies lengths by `initial` on
    # average.
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
