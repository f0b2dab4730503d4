"""A small regression, and a trace of its steps that the tests keep themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from trajstore.reading.run import Run, open_run

torch = pytest.importorskip("torch")

from torch import nn

from trajstore.recording.recorder import Recorder

Array = npt.NDArray[Any]


SMALL: dict[str, Any] = {"sketch_bits": 256, "probes": 64}


STEPS_PER_EPOCH, EPOCHS = 8, 5


class Training(NamedTuple):
    """A model, its optimizer, and a function that returns the loss of a step."""

    model: nn.Module
    optimizer: Any
    loss: Callable[[int], Any]


class Step(NamedTuple):
    """Gradient and parameters of one step, kept by the test as float64 by parameter name."""

    gradient: dict[str, Array]
    before: dict[str, Array]
    after: dict[str, Array]


def regression(*, dropout: float = 0.0, momentum: float = 0.9) -> Training:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(40, 60), nn.Tanh(), nn.Dropout(dropout), nn.Linear(60, 3)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum)

    def loss(step: int) -> Any:
        inputs = torch.randn(16, 40)
        return (model(inputs) - inputs[:, :3].sin()).square().mean()

    return Training(model, optimizer, loss)


def float64(tensor: Any) -> Array:
    dense = tensor.detach()
    dense = dense.to_dense() if dense.is_sparse else dense
    values: Array = dense.double().numpy().copy()
    return values


def iterate(training: Training) -> dict[str, Array]:
    return {n: float64(p) for n, p in training.model.named_parameters()}


def gradients(training: Training) -> dict[str, Array]:
    return {
        n: np.zeros(tuple(p.shape)) if p.grad is None else float64(p.grad)
        for n, p in training.model.named_parameters()
    }


def take_step(training: Training, step: int, recorder: Any = None) -> Step:
    training.optimizer.zero_grad()
    loss = training.loss(step)
    loss.backward()
    if recorder is not None:
        recorder.log(loss=loss)
    gradient, before = gradients(training), iterate(training)
    training.optimizer.step()
    return Step(gradient, before, iterate(training))


def record(
    path: Path, training: Training, n_steps: int, **options: Any
) -> tuple[Run, list[Step]]:
    with Recorder(path, training.model, training.optimizer, **options) as recorder:
        trace = [take_step(training, step, recorder) for step in range(n_steps)]
    return open_run(path), trace


def flat(run: Run, tensors: dict[str, Array]) -> Array:
    return run.layout.flatten(tensors, run.spec.float_type)


def count_hooks(optimizer: Any) -> int:
    return len(optimizer._optimizer_step_pre_hooks) + len(
        optimizer._optimizer_step_post_hooks
    )


def leave(recorder: Recorder) -> None:
    """Abandon a recording as a killed process would, but release its lock."""
    recorder._guard.is_recording = False
    recorder._is_open = False
    session = recorder._session
    assert session.writer is not None
    session.background.close(session.writer.close)
