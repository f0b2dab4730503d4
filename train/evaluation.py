"""Evaluate a model during training."""

from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from train.workloads.tasks import Task
from trajstore.evaluation.restored_state import restored_state
from trajstore.evaluation.setup import Batch, on_device_of

N_FIXED_BATCHES: Final = 10
"""Number of fixed batches, as in the published code of "No Wrong Turns", arXiv 2306.11922."""


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the random states of the CPU and the device (None if it is the CPU)."""
    if device.type == "cpu":
        return torch.get_rng_state(), None
    module = torch.get_device_module(device)
    return torch.get_rng_state(), module.get_rng_state(device)


def set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    """Restore random states that `random_state` has returned."""
    cpu_state, device_state = state
    torch.set_rng_state(cpu_state)
    if device_state is not None:
        torch.get_device_module(device).set_rng_state(device_state, device)


@torch.no_grad()
def evaluate(
    model: nn.Module, task: Task, batches: Iterable[Batch]
) -> dict[str, float]:
    """Return the mean loss and scores in evaluation mode; names begin with ``val_``."""
    totals: dict[str, float] = {}
    n = 0
    with restored_state(model):
        model.eval()
        for inputs, targets in on_device_of(model, batches):
            outputs = model(inputs)
            loss = task.loss(outputs, targets)
            values = {"loss": loss, **task.scores(outputs, targets, loss)}
            for name, value in values.items():
                totals[name] = totals.get(name, 0) + float(value) * len(inputs)
            n += len(inputs)
    means = {f"val_{name}": total / max(n, 1) for name, total in totals.items()}
    if "val_perplexity" in means:
        # The perplexity of the data is not the mean of the batches' perplexities.
        means["val_perplexity"] = float(torch.tensor(means["val_loss"]).exp())
    return means


def fixed_batches(data: Dataset[Any], batch_size: int, seed: int) -> list[Batch]:
    """Draw a fixed list of batches from a data set, with their augmentation."""
    # The examples are shuffled, because directories of images are sorted by class.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loader = DataLoader(data, batch_size, shuffle=True, drop_last=True)
        return list(islice(loader, N_FIXED_BATCHES))


def accumulate_gradients(
    model: nn.Module, task: Task, batches: Iterable[Batch]
) -> float:
    """Compute the gradient of the mean loss over all examples, and return that loss."""
    # All gradients must be zero or None at the start.
    total, n = 0.0, 0
    for inputs, targets in on_device_of(model, batches):
        loss = task.loss(model(inputs), targets)
        (loss * len(inputs)).backward()
        total += float(loss.detach()) * len(inputs)
        n += len(inputs)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= n
    return total / n
