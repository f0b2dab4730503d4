"""Judge the readings of a run: values that are not finite, blow-ups, zigzags, a full disk."""

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers.gradients.arrays.segments import ZIGZAG, running_median, step_kinds
from analyzers.gradients.segments import THRESHOLD, WINDOW

Floats = npt.NDArray[np.float64]

BLOW_UP: Final = 10.0
"""Ratio of a loss to the median of the losses before it that counts as a blow-up."""

BEFORE: Final = 100
"""Number of steps before a step that its loss is compared with."""

RECENT: Final = 100
"""Number of last steps that are searched for zigzags."""

ZIGZAG_SHARE: Final = 0.5
"""Share of the recent steps that must zigzag. All these criteria are our own."""

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
        _blow_up(columns["loss"]),
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
    which = " and ".join(label for label, k in first.items() if k == step)
    return Alert("non-finite", step, f"The {which} of step {step:,} is not finite.")


def _blow_up(loss: Floats) -> Alert | None:
    """Find the first loss far above the losses before it."""
    if len(loss) < 10:
        return None
    padded = np.concatenate([np.full(BEFORE, np.nan), np.abs(loss[:-1])])
    windows = np.lib.stride_tricks.sliding_window_view(padded, BEFORE)
    # Only large jumps are examined, because medians of all windows would take long.
    largest = np.fmax.accumulate(np.abs(loss))
    lowest = np.fmin.accumulate(np.abs(loss))
    likely = np.flatnonzero((np.abs(loss) >= BLOW_UP * lowest) & np.isfinite(loss))
    for k in likely[likely >= 10][-2000:]:
        before = windows[k][np.isfinite(windows[k])]
        if len(before) >= 5 and abs(loss[k]) > BLOW_UP * np.median(before):
            ratio = abs(loss[k]) / np.median(before)
            text = (
                f"The loss of step {k:,} is {loss[k]:.4g}, {ratio:.0f} times the median of "
                f"the {len(before)} steps before; the largest so far is {largest[-1]:.4g}."
            )
            return Alert("blow-up", int(k), text)
    return None


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
