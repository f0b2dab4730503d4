"""Learning a half-space with the sigmoid loss, a non-convex problem with few parameters.

R. Islamov, N. Ajroldi, A. Orvieto, A. Lucchi, "Loss Landscape Characterization of Neural
Networks without Over-Parametrization", NeurIPS 2024, learn a half-space from 20 points in
each of two classes, with a regularisation of 1e-5. The loss follows E. Hazan, K. Levy,
S. Shalev-Shwartz, "Beyond Convexity: Stochastic Quasi-Convex Optimization", NeurIPS 2015, arXiv
1507.02030, and H. Daneshmand et al., "Escaping Saddles with Stochastic Gradients", ICML
2018, arXiv 1803.05999. The text of Islamov et al. that we read does not give the formula. It
does give the smallest loss that a point can have, 0.000523853, and our formula reproduces all
digits of this number for points of norm 1. The distribution and the dimension of the points are
our own choices.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from train.data import Splits

N_POINTS: Final = 20
"""Number of points in each class."""

N_FEATURES: Final = 10
CLASS_DISTANCE: Final = 4.0
"""Distance between the class means in standard deviations, before points are normalised."""

REGULARISATION: Final = 1e-5

MIN_POINT_LOSS: Final = 0.000523853
"""Smallest loss that a single point of norm 1 can have, over all x."""


class HalfSpace(nn.Module):
    """A plane through 0 with the normal vector x, which starts from normal random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn(N_FEATURES))

    def forward(self, points: Tensor) -> Tensor:
        """Map points (N, 10) to their products with x and to |x|^2 / 2, shape (N, 2)."""
        half = self.x.square().sum() / 2
        return torch.stack([points @ self.x, half.expand(len(points))], 1)


def half_space_loss(outputs: Tensor, signs: Tensor) -> Tensor:
    """Return the mean of sigmoid(-b <a, x>) + lambda |x|^2 / 2 over points a with signs b."""
    # `outputs` has the products <a, x> and |x|^2 / 2; lambda is the regularisation.
    products, half = outputs.unbind(1)
    return (F.sigmoid(-signs * products) + REGULARISATION * half).mean()


def half_space_data(seed: int) -> Splits:
    """Draw 20 points of norm 1 in each of two classes, float32 (10,), and signs."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.tensor([1.0, -1.0]).repeat(N_POINTS)
    points = torch.randn(2 * N_POINTS, N_FEATURES, generator=generator)
    points[:, 0] += signs * CLASS_DISTANCE / 2
    return Splits(TensorDataset(F.normalize(points), signs), None, 1)
