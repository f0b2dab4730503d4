"""Evaluate the losses of the recorded batches at another point.

The alpha-beta condition (R. Islamov et al., 2024) compares the loss of step k's batch at
x_k with the loss of the same batch at x*. If the indices of the examples were recorded, the
loss at x* needs neither a second training run nor a backward pass.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from train.evaluation import Batch, restored_state
from train.observer import Track
from train.protocols.rebuild import Indices, RebuiltTraining, rebuild
from train.settings import Training
from train.workloads.catalogue import WORKLOADS
from train.workloads.tasks import Task
from trajstore.format.arrays import NO_SAMPLE, SAMPLES, STEP
from trajstore.format.attrs import TRAINING
from trajstore.reading.epochs import index_epochs
from trajstore.reading.results import replayed_from
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike, find_target, parameters_at

Losses = npt.NDArray[np.float64]

PER_EXAMPLE: Final = "per-sample losses, averaged"
BY_BATCH: Final = "batches replayed forward-only in training mode, without dropout"
ALL_DATA: Final = "all data, which every step uses"
AUGMENTATION_REDRAWN: Final = "augmentation drawn again"
"""Parts of ``attrs["method"]``, which says how the losses were computed."""

STEPS_PER_READ: Final = 4096
"""Number of steps whose indices are read together."""

ROUNDING_RTOL: Final = 1e-4
"""Relative tolerance of losses that differ only in the order of summation."""

DEVICE_RTOL: Final = 1e-3
"""Relative tolerance of losses that another device may have computed."""


def replay(
    run: Run,
    *,
    reference: TargetLike = "final",
    track: Track = iter,
    device: str | None = None,
    data_dir: str | None = None,
) -> xr.Dataset:
    """Compute the loss of every step's batch at a target.

    The model and data are rebuilt from ``run.attrs["training"]``. One pass over the data is
    enough if the examples of a batch are independent (no batch normalisation, and a loss that
    is a mean over examples) and nothing is random; both are tested on the first batch.
    Otherwise every batch is replayed with a forward pass.

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
        Loaded, with two variables in the units of the training loss. ``reference_loss``
        (step), float64, is r_k, the loss of step k's batch at x*, or NaN if the indices of
        the batch are missing. ``full_reference_loss`` is f(x*), the loss of all training
        data, computed in batches of the same size as in training. ``attrs["method"]`` says
        how the losses were computed.

    Raises
    ------
    ValueError
        If the run does not say how it was trained, if the indices of examples were not
        recorded, or if the loss of the rebuilt model and data differs from the recorded
        loss.
    KeyError, TypeError
        As raised by `trajstore.parameters_at`.

    Notes
    -----
    As in training, batch normalisation uses the statistics of each batch; buffers are
    restored afterwards. Dropout is switched off, because its masks would differ from those
    in training. Random augmentation is drawn again, so r_k is not the loss of exactly the
    images that step k used.

    References
    ----------
    .. [1] R. Islamov, N. Ajroldi, A. Orvieto, A. Lucchi, "Loss Landscape Characterization
       of Neural Networks without Over-Parametrization", NeurIPS 2024.
    """
    training = _training_of(run, device, data_dir)
    if not (training.full_batch or run.spec.samples):
        raise ValueError(
            f"The indices of examples are not recorded in {run.location}; record with "
            f"traj-train run {training.workload} --record-samples."
        )
    target = find_target(run, reference)
    rebuilt = rebuild(training)
    with restored_state(rebuilt.model), torch.no_grad():
        torch.manual_seed(training.seed)
        rebuilt.disable_dropout()
        _check_rebuilt(run, rebuilt)
        rebuilt.load(parameters_at(run, reference))
        losses, full, method = _losses(run, rebuilt, track)
    coordinates = {
        STEP: run.stored.step_numbers,
        "epoch": (STEP, run.stored.epochs),
        "iteration": (STEP, run.stored.iterations),
    }
    variables = {
        "reference_loss": (
            STEP,
            losses,
            {"long_name": "loss of the step's batch at x*", "units": "1"},
        ),
        "full_reference_loss": (
            (),
            full,
            {"long_name": "loss of all training data at x*", "units": "1"},
        ),
    }
    attributes = {
        "run": run.location,
        "reference": target.label,
        "reference_note": target.note,
        "method": method,
        "computed_from": replayed_from(run, target),
    }
    return index_epochs(xr.Dataset(variables, coordinates, attributes))


def _training_of(run: Run, device: str | None, data_dir: str | None) -> Training:
    """Return the settings of a recorded run; replace the device and directory if given."""
    settings: Any = run.attrs.get(TRAINING, {})
    known = {field.name for field in fields(Training)}
    is_ours = isinstance(settings, Mapping) and settings.get("workload") in WORKLOADS
    if not is_ours or not settings.keys() <= known:
        raise ValueError(
            f"{run.location} does not say how it was trained, or was not trained by this "
            "version of traj-train, so its model and data cannot be rebuilt; compute the "
            "losses yourself and pass them to "
            "analyzers.alpha_beta(run, reference_losses=...)."
        )
    training = Training(**settings)
    overrides: dict[str, Any] = {"device": device, "data_dir": data_dir}
    return replace(training, **{k: v for k, v in overrides.items() if v is not None})


def _check_rebuilt(run: Run, rebuilt: RebuiltTraining) -> None:
    """Refuse a rebuilt model whose loss in the first step is not the recorded loss."""
    # The losses cannot be compared if dropout or augmentation makes them random. A recording
    # that was resumed may have begun after the first step of training, at unknown parameters.
    if rebuilt.training.full_batch or run.stored.document.resumes or run.n_steps == 0:
        return
    indices = _indices(run, slice(0, 1))[0]
    recorded = float(run.steps["loss"][0]) if "loss" in run.metrics else np.nan
    if (indices == NO_SAMPLE).all() or not np.isfinite(recorded):
        return
    examples = indices[indices != NO_SAMPLE]
    _check_examples(run, rebuilt, int(examples.max()))
    if rebuilt.has_dropout() or _is_random(rebuilt, examples):
        return
    replayed = rebuilt.loss(rebuilt.batch(examples))
    if not np.isclose(replayed, recorded, rtol=DEVICE_RTOL, atol=1e-6):
        raise ValueError(
            f"The rebuilt model and data differ from those of {run.location}: the loss of "
            f"the first step is {replayed:.6g}, but {recorded:.6g} was recorded. Use the "
            "data (--data-dir) and the version of traj-train that the run was trained with."
        )


def _check_examples(run: Run, rebuilt: RebuiltTraining, largest: int) -> None:
    if largest >= (n := len(rebuilt.data)):
        raise ValueError(
            f"{run.location} was trained on example {largest}, but the data have only {n} "
            "examples; use the data that the run was trained on (--data-dir)."
        )


def _losses(
    run: Run, rebuilt: RebuiltTraining, track: Track
) -> tuple[Losses, float, str]:
    """Return the loss of each step, (step,), the loss of all data, and the method."""
    if rebuilt.training.full_batch:
        full = rebuilt.mean_loss()
        examples = np.arange(min(len(rebuilt.data), rebuilt.training.batch_size))
        method = _method(ALL_DATA, is_random=_is_random(rebuilt, examples))
        return np.full(run.n_steps, full), full, method
    counts = _count_examples(run, rebuilt)
    known_steps = np.flatnonzero(counts)
    if len(known_steps) == 0:
        return np.full(run.n_steps, np.nan), rebuilt.mean_loss(), BY_BATCH
    trial = _indices(run, slice(int(known_steps[0]), int(known_steps[0]) + 1))[0]
    trial = trial[trial != NO_SAMPLE]
    is_random = _is_random(rebuilt, trial)
    if not is_random and _is_mean(rebuilt, rebuilt.batch(trial)):
        example_losses = _all_example_losses(rebuilt, track)
        losses = _average_over_steps(run, example_losses)
        return losses, float(example_losses.mean()), PER_EXAMPLE
    losses = np.full(run.n_steps, np.nan)
    batches = rebuilt.batches(_BatchIndices(run, known_steps))
    for i, batch in zip(track(range(len(known_steps))), batches, strict=True):
        losses[known_steps[i]] = rebuilt.loss(batch)
    method = _method(BY_BATCH, is_random=is_random)
    return losses, rebuilt.mean_loss(), method


def _method(method: str, *, is_random: bool) -> str:
    return f"{method}; {AUGMENTATION_REDRAWN}" if is_random else method


def _indices(run: Run, steps: slice) -> Indices:
    """Return the recorded indices of examples, int64 (step, sample)."""
    indices: Indices = run.stored.rows(SAMPLES, steps)
    return indices


def _step_ranges(run: Run) -> Iterator[slice]:
    for start in range(0, run.n_steps, STEPS_PER_READ):
        yield slice(start, min(start + STEPS_PER_READ, run.n_steps))


def _count_examples(run: Run, rebuilt: RebuiltTraining) -> npt.NDArray[np.int64]:
    """Return the number of known examples in each step, int64 (step,)."""
    counts = np.zeros(run.n_steps, np.int64)
    for steps in _step_ranges(run):
        indices = _indices(run, steps)
        _check_examples(run, rebuilt, int(indices.max(initial=NO_SAMPLE)))
        counts[steps] = (indices != NO_SAMPLE).sum(1)
    return counts


class _BatchIndices:
    """A batch sampler that yields the recorded indices of the given steps."""

    def __init__(self, run: Run, steps: npt.NDArray[np.int64]) -> None:
        self._run, self._steps = run, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps.tolist():
            row = _indices(self._run, slice(step, step + 1))[0]
            yield row[row != NO_SAMPLE].tolist()


def _is_random(rebuilt: RebuiltTraining, examples: Indices) -> bool:
    """Whether reading the same examples twice gives different data or uses randomness."""
    before = torch.get_rng_state()
    batches = [rebuilt.batch(examples) for _ in range(2)]
    draws = not torch.equal(before, torch.get_rng_state())
    return draws or not all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def _is_mean(rebuilt: RebuiltTraining, batch: Batch) -> bool:
    """Whether the loss of a batch is the mean of the losses of its single examples."""
    # Batch normalisation does not accept a single example.
    if rebuilt.has_batch_norm():
        return False
    inputs, targets = batch
    whole = rebuilt.model(inputs)
    parts = torch.cat([rebuilt.model(x) for x in inputs.tensor_split([1]) if len(x)])
    if not torch.allclose(whole, parts, rtol=ROUNDING_RTOL, atol=ROUNDING_RTOL):
        return False
    mean = _example_losses(rebuilt.task, whole, targets).mean()
    return bool(np.isclose(mean, rebuilt.loss(batch), rtol=ROUNDING_RTOL, atol=1e-6))


def _example_losses(task: Task, outputs: Tensor, targets: Tensor) -> Losses:
    """Return the loss of every example in a batch, float64 (example,)."""
    losses = [
        task.loss(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(outputs))
    ]
    result: Losses = torch.stack(losses).double().cpu().numpy()
    return result


def _all_example_losses(rebuilt: RebuiltTraining, track: Track) -> Losses:
    """Return the loss of every example in the data, float64 (example,)."""
    n_batches = -(-len(rebuilt.data) // rebuilt.training.batch_size)
    losses = [
        _example_losses(rebuilt.task, rebuilt.model(inputs), targets)
        for _, (inputs, targets) in zip(
            track(range(n_batches)), rebuilt.batches(), strict=True
        )
    ]
    return np.concatenate(losses)


def _average_over_steps(run: Run, example_losses: Losses) -> Losses:
    """Return the mean loss of the examples in each step's batch, float64 (step,)."""
    losses = np.empty(run.n_steps)
    for steps in _step_ranges(run):
        indices = _indices(run, steps)
        is_known = indices != NO_SAMPLE
        sums = np.where(is_known, example_losses[indices], 0).sum(1)
        with np.errstate(invalid="ignore"):
            losses[steps] = sums / is_known.sum(1)
    return losses
