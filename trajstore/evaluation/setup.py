"""The parts of a training run that are needed to compute its losses again."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.data import DataLoader, default_collate

Batch = tuple[Tensor, Tensor]

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSetup:
    """Model, loss and data of a training run.

    Parameters
    ----------
    model : torch.nn.Module
        The model, on the device that computes the losses. Its parameters may have any values.
    loss : callable
        Returns the loss of a batch from the model's outputs and the targets: a mean over
        examples, for example `torch.nn.functional.cross_entropy`.
    data : torch.utils.data.Dataset
        The training data, with a length. An example is a pair of inputs and a target; the
        index of an example is the one that was recorded.
    batch_size : int
        Number of examples in a batch.
    full_batch : bool, default: False
        Whether every optimizer step used all data.
    seed : int, default: 0
        Seed of random augmentation and dropout.
    num_workers : int, default: 0
        Number of processes that load data.
    """

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    data: Any
    batch_size: int
    full_batch: bool = False
    seed: int = 0
    num_workers: int = 0

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
            self.batch_size if indices is None else 1,
            batch_sampler=indices,
            num_workers=self.num_workers,
        )
        return on_device_of(self.model, loader)

    def batch_loss(self, batch: Batch) -> float:
        """Return the loss of a batch at the model's parameters."""
        inputs, targets = batch
        return float(self.loss(self.model(inputs), targets))

    def mean_loss(self) -> float:
        """Return the mean loss of all data, computed in batches of `batch_size`."""
        total, n = 0.0, 0
        for batch in self.batches():
            total += self.batch_loss(batch) * len(batch[0])
            n += len(batch[0])
        return total / n


def on_device_of(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches on the device of a model."""
    device = next(model.parameters()).device
    for inputs, targets in batches:
        yield inputs.to(device), targets.to(device)
