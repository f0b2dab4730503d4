"""What a training loop tells of itself to whoever observes it.

A loop is written once. It runs alone (`unobserved`), into a store
(``partial(trajstore.Recorder, path)``), or under the two-run protocol (`train.protocols.two_run`).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer


class Log(Protocol):
    """What a loop calls besides its optimizer; a `trajstore.Recorder` is one."""

    def log(self, **scalars: float | Tensor) -> None:
        """Note scalars of the next optimizer step."""

    def log_samples(self, indices: Tensor) -> None:
        """Note which examples the next optimizer step is made of."""

    def measure(self, name: str, **scalars: float | Tensor) -> None:
        """Look at the gradients that there are now, between two optimizer steps."""


class Observer(Protocol):
    """Is entered before the first step of an optimizer and left after the last."""

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
"""Passes the epochs on and shows how far they are; ``iter`` shows nothing."""


class Deaf:
    """A `Log` that ignores what it is told."""

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
    """Observe nothing; an `Observer`."""
    del model, optimizer, steps_per_epoch, total_steps
    yield Deaf()
