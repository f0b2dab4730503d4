"""Curves of epoch means, and their panels; as in the paper, the final epoch is left out."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import xarray as xr

from analyzers._panels import Curve, Panel
from analyzers.geometry.epoch_means import epoch_means
from analyzers.geometry.plots import LABELS, LOG_QUANTITIES
from analyzers.geometry.stored import store_geometry
from analyzers.no_wrong_turns.runs import TrainedRun
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike

NEEDS_NETWORK: Final = "a run of a network"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSelection:
    """Range of epochs that figures show."""

    keep_final: bool = False  # whether to show the final epoch, on which x* depends
    until: int | None = None  # last epoch to show; 155 in the paper for ImageNet

    def last(self, n_epochs: int) -> int:
        """Return the last shown epoch of a path of `n_epochs` epochs."""
        last = n_epochs - 1 if self.keep_final or n_epochs == 1 else n_epochs - 2
        return last if self.until is None else min(last, self.until)

    def select(self, means: xr.Dataset, n_epochs: int) -> xr.Dataset:
        """Return the part of `means` that belongs to shown epochs."""
        return means.isel(epoch=np.flatnonzero(means["epoch"] <= self.last(n_epochs)))


AS_PUBLISHED: Final = EpochSelection()
"""All epochs except the final epoch."""


def means_of(
    run: Run, epochs: EpochSelection, *, target: TargetLike = "final"
) -> xr.Dataset:
    """Return the loaded result of `analyzers.epoch_means` for the shown epochs."""
    # If `target` is the number of an epoch, the path ends at that epoch.
    means = _means_to_final(run) if target == "final" else _means(run, target)
    n_epochs = target if isinstance(target, int) else run.n_epochs
    return epochs.select(means, n_epochs)


def _means(run: Run, target: TargetLike) -> xr.Dataset:
    return epoch_means(store_geometry(run, reference=target).compute())


@lru_cache(maxsize=64)
def _means_to_final(run: Run) -> xr.Dataset:
    """Return the epoch means relative to the final iterate, which many figures share."""
    return _means(run, "final")


def curve(
    means: xr.Dataset, quantity: str, *, label: str = "", scale: float = 1.0
) -> Curve:
    """Return a curve of means, standard errors and extremes, times a positive scale."""
    y, stderr, low, high = (
        scale * means[f"{quantity}{ending}"].values
        for ending in ("", "_stderr", "_min", "_max")
    )
    return Curve(label, means["epoch"].values, y, stderr, low, high)


def panel(
    title: str,
    labelled: Iterable[tuple[str, TrainedRun]],
    quantity: str,
    epochs: EpochSelection,
    *,
    needs: str,
    is_ordered: bool = False,
) -> Panel:
    """Return the panel of a quantity, with one curve for each run."""
    return Panel(
        title=title,
        ylabel=LABELS[quantity],
        curves=tuple(
            curve(means_of(run.run, epochs), quantity, label=label)
            for label, run in labelled
        ),
        needs=needs,
        is_ordered=is_ordered,
        is_log=quantity in LOG_QUANTITIES,
    )
