"""Steps of recorded training on images like scikit-learn's digits, for benchmarks that take turns."""

from collections.abc import Callable

import torch
from torch import nn

from trajstore import Recorder


def timed_steps(
    model: nn.Module,
    recorder: Recorder,
    optimizer: torch.optim.Optimizer,
    clock: Callable[[], float],
    *,
    flush: bool = False,
) -> Callable[[int], float]:
    """Return a function that takes steps, and returns the seconds of a clock."""
    images, labels = torch.randn(64, 1, 8, 8), torch.randint(10, (64,))
    loss_of = nn.CrossEntropyLoss()

    def take(n_steps: int) -> float:
        started = clock()
        for _ in range(n_steps):
            optimizer.zero_grad()
            loss = loss_of(model(images), labels)
            loss.backward()
            recorder.log(loss=loss)
            optimizer.step()
        if flush:
            recorder.flush()
        return clock() - started

    return take
