"""Workloads with little data and narrow models, for tests that train."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from train.data import Splits
from train.settings import Training
from train.workloads.catalogue import WORKLOADS

NARROW = {
    "train.models.dlrm.N_EMBEDDINGS": 64,
    "train.models.fastmri_unet.CHANNELS": (2, 4, 8),
    "train.models.gpt_neox.CONTEXT": 32,
    "train.models.gpt_neox.N_TOKENS": 256,
    "train.models.gpt_neox.SIZES": {"70m": (16, 1, 2), "160m": (24, 2, 2)},
    "train.models.graph_network.WIDTH": 8,
    "train.models.imagenet_resnet.STEM_CHANNELS": 8,
    "train.models.mlp.MEDIUM_WIDTH": 32,
    "train.models.resnet.CIFAR_CHANNELS": (8, 16, 32, 64),
    "train.models.resnet.DIGITS_CHANNELS": (8, 16, 32),
    "train.models.translation_transformer.DIM": 16,
    "train.models.translation_transformer.N_HEADS": 2,
    "train.models.translation_transformer.N_LAYERS": 1,
    "train.models.segnet.VGG_STAGES": ([4] * 2, [8] * 2, [16] * 3, [32] * 3, [32] * 3),
    "train.models.unet.CHANNELS": (4, 8, 16, 32, 64),
    "train.workloads.english.N_TRANSFORMER_LAYERS": 1,
    "train.workloads.english.TRANSFORMER_DIM": 16,
}


def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the channels of all models, but keep their layers."""
    for name, value in NARROW.items():
        monkeypatch.setattr(name, value)


def first(dataset: Any, n: int) -> Any:
    if not isinstance(dataset, TensorDataset):
        return Subset(dataset, range(n))
    return TensorDataset(*(tensor[:n] for tensor in dataset.tensors))


def truncate(
    monkeypatch: pytest.MonkeyPatch, name: str, n_train: int, n_validation: int = 20
) -> None:
    """Keep only the first examples of a workload."""
    workload = WORKLOADS[name]

    def truncated(training: Training) -> Splits:
        splits = workload.data(training)
        validation = splits.validation and first(splits.validation, n_validation)
        return splits._replace(
            train=first(splits.train, n_train), validation=validation
        )

    monkeypatch.setitem(WORKLOADS, name, replace(workload, data=truncated))


class RecordedLog:
    """An observer that keeps everything a loop logs and measures."""

    def __init__(self) -> None:
        self.scalars: list[dict[str, float]] = []
        self.pending: dict[str, float] = {}
        self.measured: list[tuple[str, int, dict[str, Any], Any]] = []
        self.gradients: list[Any] = []
        self.samples: list[list[int]] = []
        self.rates: list[float] = []
        self.decays: list[float] = []
        self.lengths: dict[str, int] = {}
        self.model: Any = None
        self.optimizer: Any = None

    @property
    def n_steps(self) -> int:
        return len(self.scalars)

    def log(self, **scalars: Any) -> None:
        self.pending |= {
            name: float(torch.as_tensor(value).detach())
            for name, value in scalars.items()
        }

    def log_samples(self, indices: Any) -> None:
        self.samples.append(indices.tolist())

    def measure(self, name: str, **scalars: Any) -> None:
        self.measured.append((name, self.n_steps, scalars, self.gradient()))

    def gradient(self) -> Any:
        return torch.cat([p.grad.flatten().clone() for p in self.model.parameters()])

    @contextmanager
    def __call__(
        self, model: Any, optimizer: Any, *, steps_per_epoch: int, total_steps: int
    ) -> Iterator["RecordedLog"]:
        self.lengths = {"steps_per_epoch": steps_per_epoch, "total_steps": total_steps}
        self.model, self.optimizer = model, optimizer

        def keep_step(*_: object) -> None:
            self.gradients.append(self.gradient())
            self.rates.append(optimizer.param_groups[0]["lr"])
            self.decays.append(optimizer.param_groups[0]["weight_decay"])
            self.scalars.append(self.pending)
            self.pending = {}

        handle = optimizer.register_step_pre_hook(keep_step)
        yield self
        handle.remove()
