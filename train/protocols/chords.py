"""Losses on the straight line between two iterates of a recorded run."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from train.evaluation import restored_state
from train.protocols.rebuild import rebuild
from train.settings import Training
from trajstore.format.attrs import TRAINING, training_settings
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike, find_target

FRACTIONS = tuple(np.linspace(0, 1, 11).tolist())


def losses_between(
    run: Run,
    start: TargetLike,
    end: TargetLike,
    *,
    fractions: Sequence[float] = FRACTIONS,
) -> xr.DataArray:
    """Evaluate the loss of all training examples between two points.

    Parameters
    ----------
    run : trajstore.Run
        A run recorded by ``traj-train``, whose settings are known.
    start, end : str, int, Run or mapping
        The two points, given like `reference` in `analyzers.path_geometry`: ``"final"``, an
        epoch, the name of a snapshot and so on. An epoch stands for its stored anchor, which
        is close to the iterate but not equal to it.
    fractions : sequence of float, default: eleven from 0 to 1
        Positions on the chord: 0 is `start`, 1 is `end`.

    Returns
    -------
    xarray.DataArray
        Mean losses, float64 (fraction), which `analyzers.chord_convexity` takes. The model is
        in training mode, and batches have the size of the training run: as in training, batch
        normalisation uses statistics of batches. Dropout is the same at every point.

    Raises
    ------
    KeyError
        If the run does not say how it was trained.
    """
    if TRAINING not in run.attrs:
        raise KeyError(
            f"{run.location} does not say how it was trained, so its model and data cannot "
            "be rebuilt; record the run with traj-train."
        )
    rebuilt = rebuild(Training(**training_settings(run.attrs)))
    whole = slice(0, run.layout.size)
    first, last = (
        find_target(run, point).read(whole).astype(np.float64) for point in (start, end)
    )
    losses = []
    with restored_state(rebuilt.model), torch.no_grad():
        for fraction in fractions:
            flat = (1 - fraction) * first + fraction * last
            rebuilt.load(run.layout.unflatten(flat.astype(np.float32)))
            torch.manual_seed(rebuilt.training.seed)
            losses.append(rebuilt.mean_loss())
    return xr.DataArray(losses, {"fraction": list(fractions)}, ("fraction",), "loss")
