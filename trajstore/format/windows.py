"""When the windows of a run begin.

A window has one reference point, and the error of the analysis grows with the distance
between them. So windows are short where the path moves fast compared with its distance
to the end: the first is cut at 1/8, 1/4 and 1/2, and, where the end is known, the last is
halved again and again down to one step.
"""

from dataclasses import dataclass
from typing import Final

DEFAULT_LENGTH: Final = 500
"""Steps in a window where neither an epoch's length nor `reference_every` is known."""

FIRST_CUTS: Final = (1 / 8, 1 / 4, 1 / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """The schedule of a run.

    Attributes
    ----------
    steps_per_epoch : int or None
        Optimizer steps in an epoch, None where epochs are started by hand.
    reference_every : int or None
        Length of a window in optimizer steps, None for one epoch, or for
        `DEFAULT_LENGTH` where that has no known length.
    total_steps : int or None
        Optimizer steps in the run, where known.
    """

    steps_per_epoch: int | None
    reference_every: int | None
    total_steps: int | None

    @property
    def length(self) -> int:
        """Optimizer steps in a whole window."""
        return self.reference_every or self.steps_per_epoch or DEFAULT_LENGTH

    def next_start(self, step: int, epoch_start: int) -> int:
        """Find the step with which the next window begins.

        Parameters
        ----------
        step : int
            The earliest step to consider.
        epoch_start : int
            First step of the epoch that `step` belongs to.

        Returns
        -------
        int
            The first step, not before `step`, that begins a whole window or a cut;
            unless an epoch is begun by hand before.
        """
        whole = self._whole_window(step, epoch_start)
        if whole < step:
            whole += self.length
        if self.steps_per_epoch is not None and not self._spans_epochs:
            # Windows shorter than an epoch are counted anew in each.
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
        """Steps that halve the length of a window before the end, again and again."""
        if self.total_steps is None:
            return set()
        start, last = max(0, self.total_steps - self.length), set()
        while start < self.total_steps - 1:
            start += (self.total_steps - start) // 2
            last.add(start)
        return last


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
