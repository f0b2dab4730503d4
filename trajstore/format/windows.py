"""Schedule of the windows of a run.

All steps of a window share one anchor, and the error of the analysis grows with the
distance from it. So windows are short where the path moves fast relative to its distance
from the end: the first is cut at 1/8, 1/4 and 1/2, and, where the end is known, the last is
halved repeatedly down to one step.
"""

from dataclasses import dataclass
from typing import Final

DEFAULT_LENGTH: Final = 500
"""Steps in a window where neither the epoch length nor `reference_every` is known."""

FIRST_CUTS: Final = (1 / 8, 1 / 4, 1 / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Schedule of a run."""

    steps_per_epoch: int | None  # None where epochs are started by hand
    reference_every: (
        int | None
    )  # steps in a window; None for an epoch, or DEFAULT_LENGTH
    total_steps: int | None  # in the run, where known

    @property
    def length(self) -> int:
        """Optimizer steps in a window that is not cut."""
        return self.reference_every or self.steps_per_epoch or DEFAULT_LENGTH

    def next_start(self, step: int, epoch_start: int) -> int:
        """Return the first step from `step` on that starts a window."""
        # `epoch_start` is the first step of the epoch that `step` belongs to. An epoch
        # that is started by hand earlier starts a window, too.
        whole = self._whole_window(step, epoch_start)
        if whole < step:
            whole += self.length
        if self.steps_per_epoch is not None and not self._spans_epochs:
            # Windows shorter than an epoch start over with each epoch.
            whole = min(whole, _round_up(step, self.steps_per_epoch))
        cuts = {round(self.length * cut) for cut in FIRST_CUTS}
        cuts |= self._last_cuts
        return min([whole, *(cut for cut in cuts if cut >= step)])

    @property
    def _spans_epochs(self) -> bool:
        return self.steps_per_epoch is not None and self.length >= self.steps_per_epoch

    def _whole_window(self, step: int, epoch_start: int) -> int:
        """Return the start of the whole window that `step` lies in."""
        if self.steps_per_epoch is not None:
            epoch_start = step - step % self.steps_per_epoch
        first = 0 if self._spans_epochs else epoch_start
        return step - (step - first) % self.length

    @property
    def _last_cuts(self) -> set[int]:
        """Steps that repeatedly halve the last window."""
        if self.total_steps is None:
            return set()
        start, last = max(0, self.total_steps - self.length), set()
        while start < self.total_steps - 1:
            start += (self.total_steps - start) // 2
            last.add(start)
        return last


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
