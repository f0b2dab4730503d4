"""Losses between two iterates of a run that ``traj-train`` has recorded."""

from collections.abc import Sequence

import xarray as xr

from train.protocols.rebuild import rebuild
from train.settings import Training
from trajstore.evaluation.chords import FRACTIONS
from trajstore.evaluation.chords import losses_between as evaluate_between
from trajstore.format.attrs import TRAINING, training_settings
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike


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
        The two points, as in `trajstore.evaluation.losses_between`.
    fractions : sequence of float, default: eleven from 0 to 1
        Positions on the chord: 0 is `start`, 1 is `end`.

    Returns
    -------
    xarray.DataArray
        Mean losses, float64 (fraction), as `trajstore.evaluation.losses_between` returns.

    Raises
    ------
    KeyError
        If the run does not say how it was trained.
    """
    if TRAINING not in run.attrs:
        raise KeyError(
            f"{run.location} does not say how it was trained, so its model and data cannot "
            "be rebuilt; record the run with traj-train, or give the model and the data to "
            "trajstore.evaluation.losses_between."
        )
    setup = rebuild(Training(**training_settings(run.attrs)))
    return evaluate_between(run, setup, start, end, fractions=fractions)
