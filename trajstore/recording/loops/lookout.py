"""Decide when rows are committed: after some time, or early if a person should hear of them."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trajstore.trackers.blow_ups import BEFORE, LASTING, blows_up

Array = npt.NDArray[Any]

LOOK_SECONDS: Final = 1.0
"""Seconds between two looks at rows that wait to be written."""

KINDS: Final = ("non-finite", "blow-up")


class Lookout:
    """Looks at rows that wait to be written for trouble that a person should hear of soon.

    Each of the `KINDS` of trouble counts once in a recording, so that a run which has diverged
    does not commit every step.
    """

    def __init__(self, now: float, *, flush_seconds: float, first: int) -> None:
        self.flush_seconds = flush_seconds
        self.next_flush = now + flush_seconds
        """Time at which rows are committed even if there are few."""
        self.next_look = now + LOOK_SECONDS
        self.next_row = first
        """The first step that nobody has looked at."""
        self._found: set[str] = set()
        self._losses: Array = np.empty(0)

    @property
    def is_over(self) -> bool:
        """Whether every kind of trouble has been found."""
        return len(self._found) == len(KINDS)

    def finds_trouble(self, squares: Array, losses: Array) -> bool:
        """Whether new rows show a kind of trouble for the first time."""
        # `squares` has squared norms of gradients and updates, float (row, layer, 2), and
        # `losses` the losses of rows that have one, float64 (row,).
        all_losses = np.concatenate([self._losses, losses])
        n_before = max(0, len(self._losses) - LASTING + 1)
        self._losses = all_losses[-(BEFORE + LASTING - 1) :]
        are_finite = np.isfinite(squares).all() and np.isfinite(losses).all()
        shown = {
            "non-finite": not are_finite,
            "blow-up": blows_up(all_losses[:n_before], all_losses[n_before:]),
        }
        new = {kind for kind in KINDS if shown[kind]} - self._found
        self._found |= new
        return bool(new)
