"""Schedule the windows of a run.

The steps of a window share one anchor, and the error of analyses grows with the distance
from it. Windows are therefore short where the iterate moves fast compared with its distance
from the last iterate: the first window is cut at 1/8, 1/4 and 1/2 of its length. If the
number of steps is known, the last window is halved repeatedly, down to one step.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from trajstore.format.run_spec import RunSpec

DEFAULT_LENGTH: Final = 500
"""Steps in a window if nothing says otherwise, and least number of steps in one that is chosen
for a run without epochs."""

FIRST_CUTS: Final = (1 / 8, 1 / 4, 1 / 2)
"""Positions at which the first window is cut, as fractions of its length."""

MANY_WINDOWS: Final = 1000
"""Number of windows above which all are taken to have the same length when they are counted."""

OWN_WINDOWS: Final = 10
"""Number of epochs at the start of a run that have windows of their own, also if later epochs
share windows."""


@dataclass(frozen=True, slots=False, kw_only=True)
class Windows:
    """Schedule of a run's windows."""

    steps_per_epoch: int | None
    """Steps in an epoch; None if epochs are started by hand."""
    reference_every: int | None
    """Steps in a window; None for one epoch, or for `window_steps` if no epoch length is known."""
    total_steps: int | None
    """Steps in the run; None if unknown."""
    shared_epochs: int = 1
    """Number of epochs in a window, after the first `OWN_WINDOWS` epochs."""
    window_steps: int | None = None
    """Steps in a window, chosen for a run without epochs; None for `DEFAULT_LENGTH`."""

    @classmethod
    def of(cls, spec: RunSpec) -> Self:
        """Return the schedule of a run's windows."""
        return cls(
            steps_per_epoch=spec.steps_per_epoch,
            reference_every=spec.reference_every,
            total_steps=spec.total_steps,
            shared_epochs=spec.shared_epochs,
            window_steps=spec.window_steps,
        )

    @property
    def length(self) -> int:
        """Number of optimizer steps in a window that is not cut."""
        if self.reference_every is not None:
            return self.reference_every
        if self.steps_per_epoch is not None:
            return self.shared_epochs * self.steps_per_epoch
        return self.window_steps or DEFAULT_LENGTH

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Lengths of all windows, if no epoch is started by hand, int64 (window,).

        If the number of steps is unknown, there is one window.
        """
        total, length = self.total_steps, self.length
        if total is None:
            return np.array([length])
        if total > MANY_WINDOWS * length:
            # Shorter windows at both ends hardly matter.
            return np.full(total // length, length)
        borders = [0]
        while borders[-1] < total:
            borders.append(min(self.next_start(borders[-1] + 1, 0), total))
        return np.diff(borders)

    def next_start(self, step: int, epoch_start: int) -> int:
        """Return the first step, `step` or later, that starts a window."""
        # `epoch_start` is the first step of the last epoch that was started by hand and began a
        # window, or 0.
        length, first = self._window_at(step, epoch_start)
        start = step - (step - first) % length
        if start < step:
            start += length
        if self.steps_per_epoch is not None and length < self.steps_per_epoch:
            # If windows are shorter than epochs, every epoch starts a window.
            start = min(start, _round_up(step, self.steps_per_epoch))
        cuts = {round(length * cut) for cut in FIRST_CUTS} | self._last_cuts
        return min([start, *(cut for cut in cuts if cut >= step)])

    def _window_at(self, step: int, epoch_start: int) -> tuple[int, int]:
        """Return the length of the windows at a step, and the first of their starts."""
        length, epoch = self.length, self.steps_per_epoch
        if epoch is None:
            return length, epoch_start
        if self.shared_epochs > 1:
            own = OWN_WINDOWS * epoch
            return (epoch, 0) if step <= own else (length, own)
        return length, 0 if length >= epoch else step - step % epoch

    @property
    def _last_cuts(self) -> set[int]:
        """Steps at which the last window is halved repeatedly."""
        if self.total_steps is None:
            return set()
        start, cuts = max(0, self.total_steps - self.length), set()
        while start < self.total_steps - 1:
            start += (self.total_steps - start) // 2
            cuts.add(start)
        return cuts


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
