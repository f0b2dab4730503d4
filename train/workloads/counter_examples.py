"""Counter-examples, in which negative gradients do not always point to the end of the path.

The paper describes two counter-examples in words: an asymmetric linear model (ALM) and a
sinusoidal mixture (SM). We know neither the formulas of the paper's Eq. 9 nor the constants. The
functions in this module follow the description in section 6, with our own constants.

C. Guille-Escuret, H. Naganuma, K. Fatras, I. Mitliagkas, "No Wrong Turns: The Simple
Geometry Of Neural Networks Optimization Paths", 2023, arXiv 2306.11922.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from train.data import Splits
from train.workloads.definition import by_name, embedded
from train.workloads.tasks import minimization

N_EXAMPLES: Final = 512
N_FEATURES: Final = 64
N_WAVES: Final = 256


def alm_data(seed: int) -> Splits:
    """Draw normal random inputs, (64,), and targets of the asymmetric linear model."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(N_EXAMPLES, N_FEATURES, generator=generator)
    targets = torch.randn(N_EXAMPLES, generator=generator)
    data = TensorDataset(inputs, targets)
    return Splits(data, None, 1)


def asymmetric_rmse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the root mean square of the excess of outputs over targets, a convex loss."""
    excess = (outputs[:, 0] - targets).clamp(min=0)
    # The root has no derivative at 0, where all outputs are below their targets.
    return (excess.square().mean() + 1e-12).sqrt()


def linear_model() -> nn.Module:
    """Return a linear model without a bias."""
    # A bias alone could move all outputs below their targets.
    return nn.Linear(N_FEATURES, 1, bias=False)


class SinusoidalMixture(nn.Module):
    """A deterministic, non-convex function of its parameters x, shape (64,)."""

    # f(x) = mean of a_j sin(<b_j, x> + c_j) over j, with normal random coefficients.

    amplitudes: Tensor
    directions: Tensor
    phases: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shapes = {
            "amplitudes": (N_WAVES,),
            "directions": (N_WAVES, N_FEATURES),
            "phases": (N_WAVES,),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.randn(shape, generator=generator))
        self.x = nn.Parameter(torch.randn(N_FEATURES, generator=generator))

    def forward(self, inputs: Tensor) -> Tensor:
        """Repeat the value of the function once per row of the inputs, which are not used."""
        waves = torch.sin(self.directions @ self.x + self.phases)
        return (self.amplitudes * waves).mean().expand(len(inputs))


def placeholder_data() -> Splits:
    """Return one unused example, so that an epoch has one step."""
    data = TensorDataset(torch.zeros(1, 1), torch.zeros(1))
    return Splits(data, None, 1)


def mean_output(outputs: Tensor, _targets: Tensor) -> Tensor:
    """Return the mean of the outputs, which is the value of the function."""
    return outputs.mean()


COUNTER_EXAMPLES: Final = by_name(
    embedded(
        "asymmetric linear model: convex and stochastic",
        minimization(asymmetric_rmse),
        "normal random numbers",
        lambda training: alm_data(training.seed),
        lambda *_: linear_model(),
        workload="alm",
        epochs=20,
        batch_size=4,
        optimizer="sgd",
        lr=0.05,
    ),
    embedded(
        "sinusoidal mixture: deterministic, not convex",
        minimization(mean_output),
        "no data: a function",
        lambda _: placeholder_data(),
        lambda _, training: SinusoidalMixture(training.seed),
        workload="sm",
        epochs=1000,
        batch_size=1,
        optimizer="sgd",
        lr=5.0,
    ),
)
