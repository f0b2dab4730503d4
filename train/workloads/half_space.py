"""Learning a half-space with the sigmoid as loss: few numbers, and not convex.

R. Islamov, N. Ajroldi, A. Orvieto, A. Lucchi, "Loss Landscape Characterization of Neural
Networks without Over-Parametrization", NeurIPS 2024, trains it with 20 points in each of two
classes and a regularisation of 1e-5. The loss is that of E. Hazan, K. Levy,
S. Shalev-Shwartz, "Beyond Convexity: Stochastic Quasi-Convex Optimization", NeurIPS 2015, arXiv
1507.02030, and of H. Daneshmand et al., "Escaping Saddles with Stochastic Gradients", ICML
2018, arXiv 1803.05999. The text that we read does not give the formula. It does give the
smallest loss of a point, 0.000523853, which is that of this formula for points of norm 1, to
all of its digits. How points are drawn, and their dimension, is our own.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from train.data import Splits

N_POINTS: Final = 20
"""In a class."""

N_FEATURES: Final = 10
DISTANCE: Final = 4.0
"""Between the means of the classes, whose deviation is 1, before points are normalised."""

REGULARISATION: Final = 1e-5

SMALLEST: Final = 0.000523853
"""Loss that no point of norm 1 falls below."""


class HalfSpace(nn.Module):
    """The normal x of a plane through 0; it begins with normal random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn(N_FEATURES))

    def forward(self, points: Tensor) -> Tensor:
        """Map points (N, 10) to their products with x and half of its square, (N, 2)."""
        half = self.x.square().sum() / 2
        return torch.stack([points @ self.x, half.expand(len(points))], 1)


def half_space_loss(outputs: Tensor, signs: Tensor) -> Tensor:
    r"""Return the mean of :math:`\sigma(-b \langle a, x \rangle) + \lambda |x|^2 / 2`.

    Parameters
    ----------
    outputs : torch.Tensor
        As `HalfSpace` returns them, shape (N, 2).
    signs : torch.Tensor
        Classes b as 1 and -1, shape (N,).

    Returns
    -------
    torch.Tensor
        Shape ().
    """
    products, half = outputs.unbind(1)
    return (F.sigmoid(-signs * products) + REGULARISATION * half).mean()


def half_space_data(seed: int) -> Splits:
    """Draw 20 points of norm 1 in each of two classes, float32 (10,), and signs."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.tensor([1.0, -1.0]).repeat(N_POINTS)
    points = torch.randn(2 * N_POINTS, N_FEATURES, generator=generator)
    points[:, 0] += signs * DISTANCE / 2
    return Splits(TensorDataset(F.normalize(points), signs), None, 1)
