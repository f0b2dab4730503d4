"""Measure the sharpness of a workload during training.

As in J. Cohen et al., "Gradient Descent on Neural Networks Typically Occurs at the Edge of
Stability", ICLR 2021, arXiv 2103.00065, the Hessian belongs to the loss of the first 5,000
training examples.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Subset

from train.settings import Training
from train.workloads.tasks import Task
from trajstore.curvature.sharpness import Sharpness
from trajstore.evaluation.setup import Batch, on_device_of


def sharpness_of(
    training: Training,
    model: nn.Module,
    optimizer: Optimizer,
    task: Task,
    data: Dataset[Any],
) -> Sharpness:
    """Return what measures the sharpness of a workload at its first examples."""
    n: int = min(training.sharpness_examples, len(data))  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        loader = DataLoader(Subset(data, range(n)), training.batch_size)
        batches: list[Batch] = list(loader)

    def terms() -> Iterator[Tensor]:
        """Yield each batch's share of the mean loss."""
        for inputs, targets in on_device_of(model, batches):
            yield task.loss(model(inputs), targets) * (len(inputs) / n)

    return Sharpness(
        model,
        terms,
        optimizer=optimizer,
        n=training.n_eigenvalues,
        seed=training.seed,
    )
