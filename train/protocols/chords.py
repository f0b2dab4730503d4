"""The loss on the chord between two iterates of a recorded training, without gradients."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import nn
from torch.utils.data import DataLoader

from train.controls import RandomLabels
from train.evaluation import on_device_of
from train.settings import Training
from train.workloads.catalogue import WORKLOADS
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
        Recorded by ``traj-train``, so that it says how it was trained.
    start, end : str, int, Run or mapping
        The points, as `analyzers.path_geometry` takes its reference: ``"final"``, an epoch,
        the name of a snapshot and so on. Those of epochs are the stored references, which
        are close to the iterates, and not equal.
    fractions : sequence of float, default: eleven from 0 to 1
        Where on the chord: 0 is `start`, 1 is `end`.

    Returns
    -------
    xarray.DataArray
        Dimension ``fraction``. Mean losses, float64. Batches have the size of the training,
        and the model is in training mode: normalisation sees batches, as in training, and
        dropout is the same at every point. `analyzers.chord_convexity` takes it.

    Raises
    ------
    KeyError
        If the run does not say how it was trained.
    """
    if "training" not in run.attrs:
        raise KeyError(
            f"{run.location} does not say how it was trained, so that its model and data "
            "cannot be made again. Runs of traj-train do."
        )
    training = Training(**run.attrs["training"])
    workload = WORKLOADS[training.workload]
    torch.manual_seed(training.seed)
    splits = workload.data(training)
    data = splits.train
    if training.control == "random-labels":
        data = RandomLabels(data, training.seed)
    model = workload.model(splits, training)
    whole = slice(0, run.layout.size)
    first, last = (
        find_target(run, point).read(whole).astype(np.float64) for point in (start, end)
    )
    losses = []
    for fraction in fractions:
        _set_parameters(model, run, (1 - fraction) * first + fraction * last)
        torch.manual_seed(training.seed)
        total, n = 0.0, 0
        batches = DataLoader(data, training.batch_size)
        with torch.no_grad():
            for inputs, targets in on_device_of(model, batches):
                loss = workload.task.loss(model(inputs), targets)
                total += float(loss) * len(inputs)
                n += len(inputs)
        losses.append(total / n)
    return xr.DataArray(losses, {"fraction": list(fractions)}, ("fraction",), "loss")


@torch.no_grad()
def _set_parameters(model: nn.Module, run: Run, flat: npt.NDArray[np.float64]) -> None:
    parameters = dict(model.named_parameters())
    for name, values in run.layout.unflatten(flat.astype(np.float32)).items():
        parameters[name].copy_(torch.from_numpy(np.ascontiguousarray(values)))
