"""Losses on the straight line between two iterates of a recorded run."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
import xarray as xr

from trajstore.evaluation.restored_state import restored_state
from trajstore.evaluation.setup import TrainingSetup
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike, find_target

FRACTIONS: Final = tuple(np.linspace(0, 1, 11).tolist())


def losses_between(
    run: Run,
    setup: TrainingSetup,
    start: TargetLike,
    end: TargetLike,
    *,
    fractions: Sequence[float] = FRACTIONS,
) -> xr.DataArray:
    """Evaluate the loss of all training examples between two points.

    Parameters
    ----------
    run : trajstore.Run
        The recorded run, which has the two points.
    setup : TrainingSetup
        Model, loss and data. The model keeps its parameters, buffers and mode.
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
    """
    whole = slice(0, run.layout.size)
    first, last = (
        find_target(run, point).read(whole).astype(np.float64) for point in (start, end)
    )
    losses = []
    with restored_state(setup.model, parameters=True), torch.no_grad():
        setup.model.train()
        for fraction in fractions:
            flat = (1 - fraction) * first + fraction * last
            setup.load(run.layout.unflatten(flat.astype(np.float32)))
            torch.manual_seed(setup.seed)
            losses.append(setup.mean_loss())
    return xr.DataArray(losses, {"fraction": list(fractions)}, ("fraction",), "loss")
