"""A run as the page shows it: its name, its colour, and its steps on the axis of epochs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analyzers._colors import COLORS
from trajstore.format.attrs import training_settings
from trajstore.format.shown import shown
from trajstore.reading.run import Run
from trajstore.store.location import name_of

Floats = npt.NDArray[np.float64]

MAX_NAME: Final = 48
"""Longest name of a run in the page, in characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRun:
    """A run with everything about it that all views need.

    Attributes
    ----------
    run : Run
        The run.
    key : str
        Short name of the run in the models of the page, such as ``r0``.
    name : str
        Printable name of the run, different for every run of the page.
    color : str
        Colour of the run's curves.
    position : numpy.ndarray
        Place of every step on the axis of epochs, float64 (step,): the epoch, plus the share
        of the epoch's steps that precede the step.
    epoch : numpy.ndarray
        Epoch of every step, ascending from 0, int64 (step,).
    """

    run: Run
    key: str
    name: str
    color: str
    position: Floats
    epoch: npt.NDArray[np.int64]

    @property
    def n_epochs(self) -> int:
        """Number of epochs that have started."""
        return int(self.epoch[-1]) + 1 if len(self.epoch) else 0


def show_runs(runs: Sequence[Run]) -> list[ShownRun]:
    """Give runs names, colours and an axis of epochs."""
    names = unique([short_name(run.location) for run in runs])
    shown_runs = []
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        epoch = known_epochs(run.stored.epochs)
        shown_runs.append(
            ShownRun(
                run=run,
                key=f"r{i}",
                name=name,
                color=COLORS[i % len(COLORS)],
                position=positions(epoch),
                epoch=epoch,
            )
        )
    return shown_runs


def short_name(location: str) -> str:
    """Return the last part of a location as printable text."""
    name = shown(PurePosixPath(name_of(location).rstrip("/")).name or location)
    name = name.removesuffix(".zarr")
    if len(name) > MAX_NAME:
        name = f"{name[: MAX_NAME // 2]}…{name[-MAX_NAME // 2 :]}"
    return name


def unique(names: Sequence[str]) -> list[str]:
    """Add numbers to names that occur more than once."""
    counted: dict[str, int] = {}
    result = []
    for name in names:
        counted[name] = counted.get(name, 0) + 1
        is_repeated = names.count(name) > 1
        result.append(f"{name} ({counted[name]})" if is_repeated else name)
    return result


def known_epochs(epochs: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Replace lost epochs, which are -1, by the epoch before them; int64 (step,)."""
    return np.maximum.accumulate(np.maximum(epochs.astype(np.int64), 0))


def positions(epoch: npt.NDArray[np.int64]) -> Floats:
    """Return the place of every step on the axis of epochs, float64 (step,)."""
    if not len(epoch):
        return np.empty(0)
    counts = np.bincount(epoch)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    lengths = counts.copy()
    if len(counts) > 1:
        # A run may have stopped within its last epoch.
        lengths[-1] = max(counts[-1], counts[-2])
    within = np.arange(len(epoch)) - starts[epoch]
    places: Floats = epoch + within / lengths[epoch]
    return places


def settings_of(run: Run) -> dict[str, str]:
    """Return the training settings of a run as printable text."""
    settings = training_settings(run.attrs)
    return {
        shown(str(name)): shown(str(value))
        for name, value in settings.items()
        if value is not None
    }
