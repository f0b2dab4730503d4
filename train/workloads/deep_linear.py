r"""Deep linear networks on whitened inputs, whose training has a closed form.

The network is :math:`\hat y = W_L \cdots W_1 x`. Its inputs have the covariance
:math:`\Sigma_{xx} = \frac{1}{n} \sum x x^T = I`, and its targets have the correlation
:math:`\Sigma_{yx} = \frac{1}{n} \sum y x^T = U \mathrm{diag}(\lambda) V^T` with given singular
values. Gradient descent over all data minimizes

.. math:: \frac{1}{n} \sum_i \tfrac{1}{2} |\hat y_i - y_i|^2.

This is half the squared error, *summed* over outputs and *averaged* over examples. The time
of the gradient flow after k steps with the learning rate :math:`\eta` is therefore
:math:`t = \eta k`. `analyzers.time_of_steps` has the factors of other losses.

A. M. Saxe, J. L. McClelland, S. Ganguli, "Exact solutions to the nonlinear dynamics of
learning in deep linear neural networks", 2014, arXiv 1312.6120. Sizes, singular values and
initial weights are our own.
"""

from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from train.data import Splits
from train.models.deep_linear import (
    aligned_weights,
    orthonormal,
    random_weights,
    stack,
)
from train.settings import Training
from train.workloads.definition import Workload, by_name, embedded
from train.workloads.tasks import minimization

N_EXAMPLES: Final = 32
N_INPUTS: Final = 16
N_HIDDEN: Final = 12
STRENGTHS: Final = (1.0, 0.6, 0.35, 0.2)
"""Singular values of the correlation between targets and inputs, one for each output."""

N_OUTPUTS: Final = len(STRENGTHS)

INITIAL: Final = 0.01
"""Singular values of the product of the initial weights."""

STEPS_PER_EPOCH: Final = 100
"""Repetitions of the full batch in an epoch; longer epochs need fewer anchors in a store."""


def correlation(seed: int) -> Tensor:
    """Return the input-output correlation of the data, float32 (4, 16)."""
    generator = torch.Generator().manual_seed(seed)
    left = orthonormal(N_OUTPUTS, len(STRENGTHS), generator)
    right = orthonormal(N_INPUTS, len(STRENGTHS), generator)
    strengths = torch.tensor(STRENGTHS, dtype=torch.float64)
    return (left * strengths @ right.T).float()


def linear_data(seed: int) -> Splits:
    """Draw whitened inputs, (32, 16), and linear targets, (32, 4), as full batches."""
    generator = torch.Generator().manual_seed(seed + 1)
    inputs = N_EXAMPLES**0.5 * orthonormal(N_EXAMPLES, N_INPUTS, generator)
    targets = inputs @ correlation(seed).double().T
    batches = [
        tensor.float().expand(STEPS_PER_EPOCH, -1, -1) for tensor in (inputs, targets)
    ]
    return Splits(TensorDataset(*batches), None, N_OUTPUTS)


def half_sum(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return half of the squared error, summed over outputs and averaged over examples."""
    return (outputs - targets).square().sum(-1).mean() / 2


def deep_linear(
    seed: int, *, depth: int, start: Literal["aligned", "random"] = "aligned"
) -> nn.Sequential:
    """Return a deep linear network with 16 inputs, 4 outputs and small weights."""
    if start == "aligned":
        weights = aligned_weights(
            correlation(seed), depth=depth, width=N_HIDDEN, initial=INITIAL
        )
    else:
        widths = [N_INPUTS, *[N_HIDDEN] * (depth - 1), N_OUTPUTS]
        weights = random_weights(widths, initial=INITIAL)
    return stack(weights)


def facts(training: Training) -> dict[str, Any]:
    """Return the attrs that `analyzers.linear_modes` needs."""
    matrix = correlation(training.seed).tolist()
    return {"input_output_correlation": matrix, "loss_convention": "half-sum"}


def _workload(depth: int, start: Literal["aligned", "random"]) -> Workload:
    ending = "" if start == "aligned" else f"-{start}"
    return embedded(
        f"a linear network of {depth} layers, {start} small weights",
        minimization(half_sum),
        "whitened random numbers",
        lambda training: linear_data(training.seed),
        lambda _, training: deep_linear(training.seed, depth=depth, start=start),
        facts,
        workload=f"deep-linear-{depth}{ending}",
        epochs=80,
        batch_size=1,
        optimizer="sgd",
        # At this learning rate, modes differ from those of the gradient flow by less than 1 %
        # of the largest strength.
        lr=0.005,
    )


_STARTS: Final[tuple[Literal["aligned", "random"], ...]] = ("aligned", "random")

DEEP_LINEAR: Final = by_name(
    *(_workload(depth, start) for start in _STARTS for depth in (2, 3, 4))
)
