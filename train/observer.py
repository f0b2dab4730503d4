"""Interfaces between a training loop and its observer.

The same loop runs without recording (`unobserved`), with recording
(``partial(trajstore.Recorder, path)``), or under the two-run protocol
(`train.protocols.two_run`).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer


class Log(Protocol):
    """The methods that a training loop calls; `trajstore.Recorder` implements them."""

    def log(self, **scalars: float | Tensor) -> None:
        """Log scalars with the next optimizer step."""

    def log_samples(self, indices: Tensor) -> None:
        """Log the indices of the examples in the next optimizer step."""

    def measure(self, name: str, **scalars: float | Tensor) -> None:
        """Measure the current gradients under a name, between two optimizer steps."""


class Observer(Protocol):
    """Makes the context manager in which a loop takes all its optimizer steps."""

    def __call__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        steps_per_epoch: int,
        total_steps: int,
    ) -> AbstractContextManager[Log]:
        """Return a context manager that observes the steps."""


Track = Callable[[range], Iterable[int]]
"""A function that iterates over the epochs and shows progress; ``iter`` shows nothing."""


class NullLog:
    """A `Log` that ignores everything."""

    def log(self, **scalars: float | Tensor) -> None:
        """Ignore scalars."""

    def log_samples(self, indices: Tensor) -> None:
        """Ignore indices of examples."""

    def measure(self, name: str, **scalars: float | Tensor) -> None:
        """Ignore gradients."""


@contextmanager
def unobserved(
    model: nn.Module, optimizer: Optimizer, *, steps_per_epoch: int, total_steps: int
) -> Iterator[Log]:
    """Observe nothing: the `Observer` of a run without recording."""
    del model, optimizer, steps_per_epoch, total_steps
    yield NullLog()
