"""Scale the outputs of a model: large scales make training lazy.

L. Chizat, E. Oyallon, F. Bach, "On Lazy Training in Differentiable Programming", NeurIPS 2019,
arXiv 1812.07956: outputs that start at 0 are multiplied by alpha, and the loss is divided by
alpha squared.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from train.workloads.tasks import Task


class ScaledOutputs(nn.Module):
    """A model less its initial outputs, times a factor."""

    def __init__(self, model: nn.Module, scale: float) -> None:
        super().__init__()
        self.model, self.scale = model, scale
        # In a tuple, the copy is not a part of the model, and has no parameters to train.
        self._initial = (copy.deepcopy(model).eval().requires_grad_(False),)

    def forward(self, inputs: Any) -> Tensor:
        """Map inputs to scaled outputs."""
        with torch.no_grad():
            initial = self._initial[0](inputs)
        outputs: Tensor = self.scale * (self.model(inputs) - initial)
        return outputs


def scaled(model: nn.Module, task: Task, scale: float) -> tuple[nn.Module, Task]:
    """Return a model and its task with scaled outputs and loss."""
    if scale == 1:
        return model, task

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return task.loss(outputs, targets) / scale**2

    return ScaledOutputs(model, scale), task._replace(loss=loss)
