"""Look at a model in the midst of its training, and leave no trace."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from train.workloads.tasks import Task

Batch = tuple[Tensor, Tensor]

N_FIXED: Final = 10
"""Batches whose gradients are measured again and again, as in the published code."""


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Leave torch's random streams, the model's mode and its buffers as they were."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    is_training = model.training
    with torch.random.fork_rng():
        yield
    model.train(is_training)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the states of the random streams that a model on a device draws from."""
    if device.type == "cpu":
        return torch.get_rng_state(), None
    module = torch.get_device_module(device)
    return torch.get_rng_state(), module.get_rng_state(device)


def set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    """Go back to the states that `random_state` has returned."""
    of_cpu, of_device = state
    torch.set_rng_state(of_cpu)
    if of_device is not None:
        torch.get_device_module(device).set_rng_state(of_device, device)


@torch.no_grad()
def evaluate(
    model: nn.Module, task: Task, batches: Iterable[Batch]
) -> dict[str, float]:
    """Return loss and scores over batches, in evaluation mode.

    Parameters
    ----------
    model : torch.nn.Module
        Is left as it was.
    task : Task
        Loss and scores.
    batches : iterable of tuple
        Inputs and targets.

    Returns
    -------
    dict from str to float
        Means over examples, by names that begin with ``val_``.
    """
    totals: dict[str, float] = {}
    n = 0
    with undisturbed(model):
        model.eval()
        for inputs, targets in on_device_of(model, batches):
            outputs = model(inputs)
            loss = task.loss(outputs, targets)
            # A mean of perplexities would be none; it follows from the mean loss.
            values = {"loss": loss, **task.scores(outputs, targets, loss)}
            for name, value in values.items():
                totals[name] = totals.get(name, 0) + float(value) * len(inputs)
            n += len(inputs)
    means = {f"val_{name}": total / max(n, 1) for name, total in totals.items()}
    if "val_perplexity" in means:
        means["val_perplexity"] = float(torch.tensor(means["val_loss"]).exp())
    return means


def on_device_of(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Move batches to where a model is."""
    device = next(model.parameters()).device
    for inputs, targets in batches:
        yield inputs.to(device), targets.to(device)


def fixed_batches(data: Dataset[Any], batch_size: int, seed: int) -> list[Batch]:
    """Draw batches of a data set, with its augmentation as it falls once."""
    # The first ones would not do: directories of images are sorted by class.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loader = DataLoader(data, batch_size, shuffle=True, drop_last=True)
        return list(islice(loader, N_FIXED))


def accumulate_gradients(
    model: nn.Module, task: Task, batches: Iterable[Batch]
) -> float:
    """Add the gradient of the mean loss over all examples to that of the parameters.

    Parameters
    ----------
    model : torch.nn.Module
        Its parameters' ``grad``, zeros or None before, is changed.
    task : Task
        The loss.
    batches : iterable of tuple
        Inputs and targets.

    Returns
    -------
    float
        The mean loss.
    """
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
