"""Deep learning recommendation model, DLRM.

M. Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation
Systems", 2019, arXiv 1906.00091. Sizes and initial weights follow DLRM-small of the AlgoPerf
benchmark (G. Dahl et al., "Benchmarking Neural Network Training Algorithms", 2023, arXiv
2306.07179), which has one embedding table for all categories.
"""

import itertools
import math
from typing import Any, Final

import torch
from torch import Tensor, nn

N_NUMBERS: Final = 13
N_CATEGORIES: Final = 26
"""Numbers and categories of an example of Criteo's data."""

N_EMBEDDINGS: Final = 32 * 128 * 1024
"""Rows of the embedding table; numbers of categories are taken modulo this size."""

DIM: Final = 128


class DLRM(nn.Module):
    """Predicts clicks from numbers and categories, and from products of their embeddings."""

    def __init__(self, n_embeddings: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(n_embeddings, DIM)
        nn.init.uniform_(self.embeddings.weight, 0, n_embeddings**-0.5)
        self.bottom = _perceptron(
            [N_NUMBERS, 512, 256, DIM], glorot=nn.init.xavier_uniform_
        )
        self.bottom.append(nn.ReLU())
        n_pairs = math.comb(N_CATEGORIES + 2, 2)
        widths = [DIM + n_pairs, 1024, 1024, 512, 256, 1]
        self.top = _perceptron(widths, glorot=nn.init.xavier_normal_)

    def forward(self, examples: Tensor) -> Tensor:
        """Map examples (N, 39), 13 numbers and 26 categories, to logits (N,)."""
        numbers, categories = examples.split([N_NUMBERS, N_CATEGORIES], 1)
        dense: Tensor = self.bottom(numbers.float())
        rows = categories.long() % self.embeddings.num_embeddings
        vectors = torch.cat([dense[:, None], self.embeddings(rows)], 1)
        products = vectors @ vectors.mT
        # Products of a vector with itself are included.
        i, j = torch.triu_indices(*products.shape[1:], device=products.device)
        logits: Tensor = self.top(torch.cat([dense, products[:, i, j]], 1))
        return logits[:, 0]


def _perceptron(widths: list[int], *, glorot: Any) -> nn.Sequential:
    """Return linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        linear = nn.Linear(n_in, n_out)
        glorot(linear.weight)
        nn.init.normal_(linear.bias, std=n_out**-0.5)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def dlrm_small() -> DLRM:
    """Return DLRM-small: 539,267,457 parameters."""
    return DLRM(N_EMBEDDINGS)
