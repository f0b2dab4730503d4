"""Measure sharpness during training: the largest eigenvalues of the Hessian.

The protocol is that of J. Cohen et al., "Gradient Descent on Neural Networks Typically Occurs
at the Edge of Stability", ICLR 2021, arXiv 2103.00065: the Hessian belongs to the loss of the
first 5,000 training examples, and is measured before the step, in training mode.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Subset

from train.curvature.hessian import Eigenpairs, preconditioner_of, top_eigenvalues
from train.evaluation import Batch, on_device_of, restored_state
from train.settings import Training
from train.workloads.tasks import Task


class Sharpness:
    """Measures the sharpness of a model, and leaves the model unchanged."""

    def __init__(
        self,
        training: Training,
        model: nn.Module,
        optimizer: Optimizer,
        task: Task,
        data: Dataset[Any],
    ) -> None:
        self._training, self._model, self._task = training, model, task
        self._optimizer = optimizer
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        n: int = min(training.sharpness_examples, len(data))  # type: ignore[arg-type]
        self._n = n
        with torch.random.fork_rng():
            torch.manual_seed(training.seed)
            loader = DataLoader(Subset(data, range(n)), training.batch_size)
            self._batches: list[Batch] = list(loader)
        self.directions: dict[str, Tensor] = {}
        """Starting vectors for the next search, by name of eigenvalue, float64 (param,)."""

    def measure(self) -> dict[str, float]:
        """Return the eigenvalues at the model's parameters, by their logged names."""
        # The names are "sharpness", "sharpness_2" and so on. Adaptive optimizers also have
        # "preconditioned_sharpness" after their first step.
        with restored_state(self._model):
            n = self._training.n_eigenvalues
            values = self._largest("sharpness", n, None)
            names = ["sharpness", *(f"sharpness_{i}" for i in range(2, n + 1))]
            eigenvalues = dict(zip(names, values.tolist(), strict=True))
            preconditioner = preconditioner_of(self._optimizer, self._parameters)
            if preconditioner is not None:
                name = "preconditioned_sharpness"
                [eigenvalues[name]] = self._largest(name, 1, preconditioner).tolist()
        return eigenvalues

    def _largest(
        self, name: str, n: int, preconditioner: Tensor | None
    ) -> npt.NDArray[np.float64]:
        """Return the n largest eigenvalues, searching from the eigenvectors found before."""
        start = self.directions.get(name)
        pairs: Eigenpairs = top_eigenvalues(
            self._terms,
            self._parameters,
            n=n,
            preconditioner=preconditioner,
            start=None if start is None else start.numpy(),
        )
        if np.isfinite(pairs.vectors).all():
            self.directions[name] = torch.from_numpy(pairs.vectors.sum(0))
        return pairs.values

    def _terms(self) -> Iterator[Tensor]:
        """Yield each batch's share of the mean loss, with the same dropout every time."""
        torch.manual_seed(self._training.seed)
        for inputs, targets in on_device_of(self._model, self._batches):
            loss = self._task.loss(self._model(inputs), targets)
            yield loss * (len(inputs) / self._n)
