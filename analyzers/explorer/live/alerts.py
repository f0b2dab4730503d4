"""Judge the readings of a run: values that are not finite, blow-ups, zigzags, a full disk."""

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers.gradients.arrays.segments import ZIGZAG, running_median, step_kinds
from analyzers.gradients.defaults import THRESHOLD, WINDOW
from trajstore.trackers.blow_ups import BEFORE, BLOW_UP, LASTING

Floats = npt.NDArray[np.float64]

MAX_STEPS: Final = 10_000
"""Number of last steps that are searched for a blow-up."""

MAX_CANDIDATES: Final = 2000
"""Largest number of steps to compare with the steps before."""

RECENT: Final = 100
"""Number of last steps that are searched for zigzags."""

ZIGZAG_SHARE: Final = 0.5
"""Share of the recent steps that must zigzag. This criterion is our own."""

SPARE_BYTES: Final = 500e6
"""Free bytes that should remain on the disk."""


class Alert(NamedTuple):
    """Something that a person should look at."""

    kind: str  # the same alert is reported once
    step: int
    text: str


def find_alerts(
    columns: Mapping[str, Floats], *, size: float, free: float, total: int | None
) -> list[Alert]:
    """Return the alerts that the readings of a run give cause for.

    Parameters
    ----------
    columns : mapping of str to numpy.ndarray
        Columns of `Readings`, float64 (step,).
    size, free : float
        Bytes of the store, and free bytes on its disk; NaN if unknown.
    total : int or None
        Number of steps that the run will have, if that is known.

    Returns
    -------
    list of Alert
        At most one alert of each kind.
    """
    n_steps = len(columns["loss"])
    found = [
        _not_finite(columns),
        _blow_up(columns["loss"][-MAX_STEPS:], max(0, n_steps - MAX_STEPS)),
        _zigzag(columns["cosine"]),
        _disk(n_steps, size, free, total),
    ]
    return [alert for alert in found if alert is not None]


def _not_finite(columns: Mapping[str, Floats]) -> Alert | None:
    """Find the first step with a gradient, an update or a loss that is not finite."""
    first: dict[str, int] = {}
    names = {"grad_norm": "gradient", "update_norm": "update"}
    for name, label in names.items():
        bad = np.flatnonzero(~np.isfinite(columns[name]))
        if len(bad):
            first[label] = int(bad[0])
    loss = columns["loss"]
    bad = np.flatnonzero(np.isinf(loss))
    # A loss that is not logged is NaN too; so NaN counts only after losses without a gap.
    is_nan = np.isnan(loss)
    if len(loss) and not is_nan[0]:
        gap = int(np.argmax(is_nan)) if is_nan.any() else len(loss)
        if 1 < gap < len(loss):
            bad = np.append(bad, gap)
    if len(bad):
        first["loss"] = int(bad.min())
    if not first:
        return None
    step = min(first.values())
    *others, last = (f"the {label}" for label, k in first.items() if k == step)
    which = f"{', '.join(others)} and {last}" if others else last
    verb = "are" if others else "is"
    text = f"{which} of step {step:,} {verb} not finite.".capitalize()
    return Alert("non-finite", step, text)


def _blow_up(loss: Floats, n_before: int) -> Alert | None:
    """Find the first steps whose losses are far above the losses before them."""
    # `n_before` steps precede these losses.
    # A single loss tells little: those of small batches differ by a factor of 10 as well.
    n = len(loss) - LASTING
    if n < LASTING:
        return None
    size = np.abs(loss)
    lasting = _medians(size, LASTING)  # of steps k, ..., k + LASTING - 1
    # Medians of many steps take long; a step that is not above the lowest one is no candidate.
    lowest = np.fmin.accumulate(lasting)
    for k in np.flatnonzero(lasting > BLOW_UP * lowest)[:MAX_CANDIDATES]:
        before = size[max(0, k - BEFORE) : k]
        before = before[np.isfinite(before)]
        if len(before) >= LASTING and lasting[k] > BLOW_UP * np.median(before):
            usual = np.median(before)
            first = int(k + np.argmax(size[k : k + LASTING] > BLOW_UP * usual))
            first += n_before
            text = (
                f"Losses around step {first:,} have the median {lasting[k]:.4g}, "
                f"{lasting[k] / usual:.0f} times that of the {len(before)} steps before."
            )
            return Alert("blow-up", first, text)
    return None


def _medians(values: Floats, length: int) -> Floats:
    """Return the medians of successive values, ignoring NaN, float64 (step - length + 1,)."""
    half = length // 2
    medians = running_median(values, length)[half : len(values) - half]
    return np.asarray(medians, np.float64)


def _zigzag(cosine: Floats) -> Alert | None:
    """Say whether the recent steps zigzag."""
    recent = cosine[-RECENT:]
    if len(recent) < RECENT or not np.isfinite(recent).any():
        return None
    kinds = step_kinds(running_median(recent, WINDOW), THRESHOLD)
    share = float(np.mean(kinds == ZIGZAG))
    if share < ZIGZAG_SHARE:
        return None
    step = len(cosine) - RECENT
    text = (
        f"{100 * share:.0f} % of the last {RECENT} steps zigzag: the running median of the "
        f"cosine of adjacent gradients is below {-THRESHOLD:g}."
    )
    return Alert("zigzag", step, text)


def _disk(n_steps: int, size: float, free: float, total: int | None) -> Alert | None:
    """Say whether the rest of the run fits on the disk."""
    if not np.isfinite(free) or not n_steps:
        return None
    needed = size / n_steps * max(0, (total or n_steps) - n_steps)
    if free - needed > SPARE_BYTES:
        return None
    text = f"{free / 1e9:.2f} GB are free on the disk of the store"
    if needed:
        text += f"; the rest of the run needs about {needed / 1e9:.2f} GB"
    return Alert("disk", n_steps - 1, f"{text}.")
