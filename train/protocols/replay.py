"""Evaluate the losses of the batches of a run that ``traj-train`` has recorded."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import xarray as xr

from train.observer import Track
from train.protocols.rebuild import rebuild
from train.settings import Training
from train.workloads.catalogue import WORKLOADS
from trajstore.evaluation.along_path import losses_on_plane, losses_towards
from trajstore.evaluation.replaying import OtherTrainingError
from trajstore.evaluation.replaying import replay as replay_with
from trajstore.format.attrs import LINES, PLANE, TRAINING
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike


def replay(
    run: Run,
    *,
    reference: TargetLike = "final",
    track: Track = iter,
    device: str | None = None,
    data_dir: str | None = None,
) -> xr.Dataset:
    """Compute the loss of every step's batch at a target.

    The model and data are rebuilt from ``run.attrs["training"]``;
    `trajstore.evaluation.replay` does the rest.

    Parameters
    ----------
    run : trajstore.Run
        A run recorded by ``traj-train run NAME --record-samples``, or with full batches.
    reference : str, int, Run or mapping, default: "final"
        The target x*, given as in `analyzers.path_geometry`.
    track : callable, default: iter
        Iterates over the batches and shows progress.
    device : str, optional
        Device, as torch names it. Default: as in the training run.
    data_dir : str, optional
        Directory of the data. Default: as in the training run.

    Returns
    -------
    xarray.Dataset
        As `trajstore.evaluation.replay` returns.

    Raises
    ------
    ValueError
        If the run does not say how it was trained, if the indices of examples were not
        recorded, or if the loss of the rebuilt model and data differs from the recorded
        loss.
    """
    training = _training_of(run, device, data_dir)
    if not (training.full_batch or run.spec.samples):
        raise ValueError(
            f"The indices of examples are not recorded in {run.location}; record with "
            f"traj-train run {training.workload} --record-samples."
        )
    try:
        return replay_with(run, rebuild(training), reference=reference, track=track)
    except OtherTrainingError as error:
        raise ValueError(
            f"{error} The data are those of --data-dir; the model is that of this version "
            "of traj-train."
        ) from error


def losses_along(
    run: Run,
    *,
    reference: TargetLike = "final",
    lines: bool,
    plane: int,
    track: Track = iter,
    device: str | None = None,
    data_dir: str | None = None,
) -> dict[str, xr.Dataset]:
    """Return losses on lines to the target and on a plane of `plane` by `plane` points."""
    setup = rebuild(_training_of(run, device, data_dir))
    found = {}
    if lines:
        found[LINES] = losses_towards(run, setup, reference=reference, track=track)
    if plane:
        found[PLANE] = losses_on_plane(run, setup, size=plane, track=track)
    return found


def _training_of(run: Run, device: str | None, data_dir: str | None) -> Training:
    """Return the settings of a recorded run; replace the device and directory if given."""
    settings: Any = run.attrs.get(TRAINING, {})
    known = {field.name for field in fields(Training)}
    is_ours = isinstance(settings, Mapping) and settings.get("workload") in WORKLOADS
    if not is_ours or not settings.keys() <= known:
        raise ValueError(
            f"{run.location} does not say how it was trained, or was not trained by this "
            "version of traj-train, so its model and data cannot be rebuilt. Give them to "
            "trajstore.evaluation.replay, or compute the losses yourself and pass them to "
            "analyzers.alpha_beta(run, reference_losses=...)."
        )
    training = Training(**settings)
    overrides: dict[str, Any] = {"device": device, "data_dir": data_dir}
    return replace(training, **{k: v for k, v in overrides.items() if v is not None})
