"""Schedule the windows of a run.

The steps of a window share one anchor, and the error of analyses grows with the distance
from it. Windows are therefore short where the iterate moves fast compared with its distance
from the last iterate: the first window is cut at 1/8, 1/4 and 1/2 of its length. If the
number of steps is known, the last window is halved repeatedly, down to one step.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

DEFAULT_LENGTH: Final = 500
"""Steps in a window if neither the epoch length nor `reference_every` is known."""

FIRST_CUTS: Final = (1 / 8, 1 / 4, 1 / 2)
"""Positions at which the first window is cut, as fractions of its length."""


@dataclass(frozen=True, slots=False, kw_only=True)
class Windows:
    """Schedule of a run's windows."""

    steps_per_epoch: int | None
    """Steps in an epoch; None if epochs are started by hand."""
    reference_every: int | None
    """Steps in a window; None for one epoch, or `DEFAULT_LENGTH` if no epoch length is known."""
    total_steps: int | None
    """Steps in the run; None if unknown."""

    @property
    def length(self) -> int:
        """Number of optimizer steps in a window that is not cut."""
        return self.reference_every or self.steps_per_epoch or DEFAULT_LENGTH

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Lengths of all windows, if no epoch is started by hand, int64 (window,).

        If the number of steps is unknown, there is one window. If epochs are no multiples of
        windows, the last windows of epochs are counted as whole.
        """
        if (total := self.total_steps) is None:
            return np.array([self.length])
        cuts = [round(self.length * cut) for cut in FIRST_CUTS]
        starts = [*range(0, total, self.length), *cuts, *self._last_cuts]
        return np.diff(np.unique(np.minimum([*starts, total], total)))

    def next_start(self, step: int, epoch_start: int) -> int:
        """Return the first step, `step` or later, that starts a window."""
        # `epoch_start` is the first step of the epoch that `step` belongs to. If an epoch
        # is started by hand before the returned step, that epoch starts a window as well.
        start = self._uncut_start(step, epoch_start)
        if start < step:
            start += self.length
        if self.steps_per_epoch is not None and not self._spans_epochs:
            # If windows are shorter than epochs, every epoch starts a window.
            start = min(start, _round_up(step, self.steps_per_epoch))
        cuts = {round(self.length * cut) for cut in FIRST_CUTS}
        cuts |= self._last_cuts
        return min([start, *(cut for cut in cuts if cut >= step)])

    @property
    def _spans_epochs(self) -> bool:
        return self.steps_per_epoch is not None and self.length >= self.steps_per_epoch

    def _uncut_start(self, step: int, epoch_start: int) -> int:
        """Return the start of the uncut window that contains `step`."""
        if self.steps_per_epoch is not None:
            epoch_start = step - step % self.steps_per_epoch
        first = 0 if self._spans_epochs else epoch_start
        return step - (step - first) % self.length

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
