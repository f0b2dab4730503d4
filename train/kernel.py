"""Measure the tangent kernel of a workload's first examples during training."""

from typing import Any

from torch import nn
from torch.utils.data import Dataset, default_collate

from train.settings import Training
from trajstore.curvature.tangent_kernel import TangentKernel
from trajstore.evaluation.setup import on_device_of


def kernel_of(
    training: Training, model: nn.Module, data: Dataset[Any]
) -> TangentKernel:
    """Return what measures the tangent kernel of the first examples."""
    n: int = min(training.kernel_examples, len(data))  # type: ignore[arg-type]
    examples = default_collate([data[i] for i in range(n)])
    [(inputs, targets)] = on_device_of(model, [examples])
    # Labels of pixels and tokens are not those of outputs one by one.
    return TangentKernel(model, inputs, targets if targets.ndim == 1 else None)
