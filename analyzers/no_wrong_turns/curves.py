"""Curves of runs: means of epochs without the final one, as the paper shows them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import xarray as xr

from analyzers._panels import Curve
from analyzers.geometry.epoch_means import epoch_means
from analyzers.geometry.stored import store_geometry
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Which epochs figures show.

    Attributes
    ----------
    keep_final : bool
        Show the final epoch, too, in which x* and the path are not independent.
    until : int or None
        Last epoch to show; the paper shows ImageNet until 155.
    """

    keep_final: bool = False
    until: int | None = None

    def last(self, n_epochs: int) -> int:
        """Return the last epoch that is shown of a path of some epochs."""
        last = n_epochs - 1 if self.keep_final or n_epochs == 1 else n_epochs - 2
        return last if self.until is None else min(last, self.until)


AS_PUBLISHED: Final = Shown()
"""All epochs but the final one."""


def means_of(run: Run, shown: Shown, *, reference: TargetLike = "final") -> xr.Dataset:
    """Return the means of the epochs of a run that are shown.

    Parameters
    ----------
    run : trajstore.Run
        The run; its geometry is kept beside it.
    shown : Shown
        Which epochs.
    reference : str, int, Run or mapping, default: "final"
        As `analyzers.path_geometry` takes it. The path ends before the epoch of that
        number.

    Returns
    -------
    xarray.Dataset
        As of `analyzers.epoch_means`, loaded.
    """
    means = _to_the_end(run) if reference == "final" else _means(run, reference)
    n_epochs = reference if isinstance(reference, int) else run.n_epochs
    return means.isel(epoch=np.flatnonzero(means["epoch"] <= shown.last(n_epochs)))


def _means(run: Run, reference: TargetLike) -> xr.Dataset:
    return epoch_means(store_geometry(run, reference=reference).compute())


@lru_cache(maxsize=64)
def _to_the_end(run: Run) -> xr.Dataset:
    """Return the means that many figures show, of a run as it was when it was opened."""
    return _means(run, "final")


def curve(
    means: xr.Dataset, quantity: str, *, label: str = "", scale: float = 1.0
) -> Curve:
    """Return a quantity as a curve.

    Parameters
    ----------
    means : xarray.Dataset
        As returned by `means_of`.
    quantity : str
        Its name.
    label : str, default: ""
        For the legend.
    scale : float, default: 1.0
        What all values are multiplied by; positive.

    Returns
    -------
    Curve
        With bars for the standard error of the mean, and a band from the smallest to the
        largest step.
    """
    y, stderr, low, high = (
        scale * means[f"{quantity}{ending}"].values
        for ending in ("", "_stderr", "_min", "_max")
    )
    return Curve(label, means["epoch"].values, y, stderr, low, high)
