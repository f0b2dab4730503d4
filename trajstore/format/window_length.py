"""Choose a run's windows from its epochs, its steps and its parameters.

An anchor takes time and about a byte for every parameter. Epochs of few steps therefore share
windows in a long run, and in a run of few epochs each epoch is cut into several windows.
"""

from dataclasses import replace
from functools import lru_cache
from math import ceil, prod
from typing import Final, NamedTuple

from trajstore.format.arrays import (
    ITEM_SIZE,
    KEYFRAME_EVERY,
    KEYFRAMES,
    ArraySpec,
    row_arrays,
    window_arrays,
)
from trajstore.format.layout import Layout
from trajstore.format.run_spec import RunSpec
from trajstore.format.windows import DEFAULT_LENGTH, OWN_WINDOWS

SHORTEST: Final = 50
"""Least number of steps in a shared window, and in epochs that never share windows."""

SHORTEST_OWN: Final = 10
"""Epochs of fewer steps always share windows, which take time to begin."""

OWN_BYTES_SHARE: Final = 0.5
"""Epochs share windows if an anchor in each of them would take more than this share of the bytes
of their steps, unless they have at least `SHORTEST` steps. In a run without epochs, windows are
longer than `DEFAULT_LENGTH` if anchors would take more."""

BYTES_SHARE: Final = 0.08
"""Anchors of shared windows take at most this share of the bytes of the steps, unless windows
would be longer than `DEFAULT_LENGTH`."""

RUN_SHARE: Final = 0.04
"""Shared windows are at least about this share of a run; shorter ones are not more precise. In a
run without epochs, windows longer than `DEFAULT_LENGTH` are at most this share."""

MAX_RUN_SHARE: Final = 1 / 8
"""Windows are at most this share of a run, unless they would be shorter than `SHORTEST`."""


class ChosenWindows(NamedTuple):
    """A spec with chosen windows, and why they were chosen."""

    spec: RunSpec
    reason: str
    """Why windows are longer or shorter than epochs, for users to read; "" if they are not."""


def choose_windows(spec: RunSpec) -> ChosenWindows:
    """Choose windows, unless users choose them."""
    epoch, total = spec.steps_per_epoch, spec.total_steps
    if spec.reference_every is not None:
        return ChosenWindows(spec, "")
    if epoch is None:
        return _without_epochs(spec)
    least = shared_length(spec)
    most = None if total is None else max(total * MAX_RUN_SHARE, SHORTEST)
    own = own_length(spec)
    if epoch >= own:
        n_parts = 1 if most is None else ceil(epoch / max(most, least))
        if n_parts == 1:
            return ChosenWindows(spec, "")
        length = ceil(epoch / n_parts)
        reason = f"the run has few epochs, so each is cut into {n_parts} windows"
        return ChosenWindows(replace(spec, reference_every=length), reason)
    wanted = float(least)
    if total is not None and most is not None:
        wanted = min(max(wanted, min(total * RUN_SHARE, DEFAULT_LENGTH)), most)
        if total <= OWN_WINDOWS * epoch:
            wanted = 0.0
    n_epochs = max(ceil(wanted / epoch), 1)
    if n_epochs == 1:
        return ChosenWindows(spec, "")
    reason = (
        f"epochs of fewer than {own} steps share anchors from epoch {OWN_WINDOWS} on, here "
        f"{n_epochs} epochs an anchor"
    )
    return ChosenWindows(replace(spec, shared_epochs=n_epochs), reason)


def _without_epochs(spec: RunSpec) -> ChosenWindows:
    """Choose longer windows if most of the store of a run without epochs would be anchors."""
    least = ceil(_anchor_bytes_in_rows(spec) / OWN_BYTES_SHARE)
    length = min(least, round((spec.total_steps or 0) * RUN_SHARE))
    if length <= DEFAULT_LENGTH:
        return ChosenWindows(spec, "")
    reason = (
        f"the run has no epochs, and windows are longer than {DEFAULT_LENGTH} steps, up to "
        f"{RUN_SHARE:.0%} of the run, because anchors would take most of the store"
    )
    return ChosenWindows(replace(spec, window_steps=length), reason)


def shared_length(spec: RunSpec) -> int:
    """Return the least number of steps in a window that short epochs share."""
    length = ceil(_anchor_bytes_in_rows(spec) / BYTES_SHARE)
    return min(max(length, SHORTEST), DEFAULT_LENGTH)


def own_length(spec: RunSpec) -> int:
    """Return the least number of steps in an epoch that has a window of its own."""
    length = ceil(_anchor_bytes_in_rows(spec) / OWN_BYTES_SHARE)
    return min(max(length, SHORTEST_OWN), SHORTEST)


def epoch_as_window(n_steps: int | None) -> int | None:
    """Return the steps in an epoch as the length of windows; None if it is short or unknown."""
    return n_steps if n_steps is not None and n_steps >= SHORTEST else None


def begins_window(
    spec: RunSpec, epoch: int, *, n_before: int, n_in_window: int
) -> bool:
    """Whether an epoch that is begun by hand begins a window."""
    # `n_before` is the number of steps in the epoch before it, `n_in_window` in the open window.
    return (
        spec.reference_every is not None
        or epoch < OWN_WINDOWS
        or n_before >= own_length(spec)
        or n_in_window >= shared_length(spec)
    )


@lru_cache(maxsize=8)
def _anchor_bytes_in_rows(spec: RunSpec) -> float:
    """Return the number of rows that take as many bytes as an anchor."""
    size = Layout(spec.names, spec.shapes).size
    rows, anchors = row_arrays(spec, n_metrics=0), window_arrays(spec, size=size)
    keyframe = _row_bytes(anchors.pop(KEYFRAMES)) / KEYFRAME_EVERY
    anchor_bytes = keyframe + sum(map(_row_bytes, anchors.values()))
    return anchor_bytes / sum(map(_row_bytes, rows.values()))


def _row_bytes(array: ArraySpec) -> int:
    return ITEM_SIZE[array.dtype] * prod(array.inner)
