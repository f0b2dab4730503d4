"""Recognise losses that blow up, for the recorder and for whoever watches it."""

# All these criteria are our own.

from typing import Any, Final

import numpy as np
import numpy.typing as npt

BLOW_UP: Final = 10.0
"""Ratio of losses to the losses before them that counts as a blow-up, both as medians."""

LASTING: Final = 5
"""Number of steps whose losses must be that large, odd."""

BEFORE: Final = 100
"""Number of steps before that losses are compared with."""


def blows_up(before: npt.NDArray[Any], losses: npt.NDArray[Any]) -> bool:
    """Whether `LASTING` successive losses have a median far above the losses before them."""
    known = np.abs(before[np.isfinite(before)])
    if len(known) < LASTING or len(losses) < LASTING:
        return False
    successive = np.lib.stride_tricks.sliding_window_view(np.abs(losses), LASTING)
    return bool((np.median(successive, -1) > BLOW_UP * np.median(known)).any())
