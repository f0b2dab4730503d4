"""Rebuild the model and data of a training run from its settings."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.data import DataLoader, default_collate

from train.evaluation import Batch, on_device_of
from train.loop import device_of, training_data
from train.settings import Training
from train.workloads.catalogue import WORKLOADS
from train.workloads.tasks import Task

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuiltTraining:
    """Model, loss and data of a training run before its first step."""

    training: Training
    model: nn.Module
    task: Task
    data: Any  # a data set that has a length

    def disable_dropout(self) -> None:
        """Set the model to training mode without dropout."""
        self.model.train()
        for module in self.model.modules():
            # Attention and recurrent layers have their own dropout.
            if isinstance(module, (_DropoutNd, nn.MultiheadAttention, nn.RNNBase)):
                module.eval()

    def has_dropout(self) -> bool:
        """Whether the model has a dropout layer that is active in training mode."""
        return any(
            isinstance(module, _DropoutNd) and module.p > 0
            for module in self.model.modules()
        )

    def has_batch_norm(self) -> bool:
        """Whether the model has a layer that normalises over the batch."""
        return any(isinstance(module, _BatchNorm) for module in self.model.modules())

    def load(self, parameters: Mapping[str, npt.NDArray[Any]]) -> None:
        """Set the parameters of the model without changing its buffers."""
        state = {
            name: torch.from_numpy(np.ascontiguousarray(values))
            for name, values in parameters.items()
        }
        self.model.load_state_dict(state, strict=False)

    def batch(self, indices: Indices) -> Batch:
        """Return the examples with the given indices as one batch, on the model's device."""
        examples = [self.data[i] for i in indices.tolist()]
        [batch] = on_device_of(self.model, [default_collate(examples)])
        return batch

    def batches(self, indices: Iterable[list[int]] | None = None) -> Iterator[Batch]:
        """Yield a batch for each list of indices, or all data in batches of `batch_size`."""
        loader = DataLoader(
            self.data,
            self.training.batch_size if indices is None else 1,
            batch_sampler=indices,
            num_workers=self.training.num_workers,
        )
        return on_device_of(self.model, loader)

    def loss(self, batch: Batch) -> float:
        """Return the loss of a batch at the model's parameters."""
        inputs, targets = batch
        return float(self.task.loss(self.model(inputs), targets))

    def mean_loss(self) -> float:
        """Return the mean loss of all data, computed in batches of `batch_size`."""
        total, n = 0.0, 0
        for batch in self.batches():
            total += self.loss(batch) * len(batch[0])
            n += len(batch[0])
        return total / n


def rebuild(training: Training) -> RebuiltTraining:
    """Rebuild the model and data of a training run; torch's random streams stay the same."""
    workload = WORKLOADS[training.workload]
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        splits = workload.data(training)
        model = workload.model(splits, training).to(device_of(training))
    return RebuiltTraining(
        training=training,
        model=model,
        task=workload.task,
        data=training_data(splits, training),
    )
