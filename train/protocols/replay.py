"""What the batches of a recorded training lose at another point than where they were taken.

The alpha-beta condition (R. Islamov et al., 2024) compares the loss of step k's batch where
it was taken with the loss of the same batch at x*. A recording that kept the indices of the
examples needs no second training for that, and no backward pass.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.data import DataLoader, Dataset, default_collate

from train.evaluation import Batch, on_device_of, undisturbed
from train.loop import device_of, learnt_from
from train.observer import Track
from train.settings import Training
from train.workloads.catalogue import WORKLOADS
from train.workloads.tasks import Task
from trajstore.format.arrays import NO_SAMPLE, SAMPLES, STEP
from trajstore.reading.epochs import index_epochs
from trajstore.reading.results import replayed_from
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike, find_target, parameters_at

Losses = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

PER_EXAMPLE: Final = "per-sample losses, averaged"
BY_BATCH: Final = "batches replayed forward-only in training mode, without dropout"
ALL_DATA: Final = "all data, of which every step is made"
DRAWN_ANEW: Final = "augmentation drawn anew"

ROWS: Final = 4096
"""Steps whose indices are read at once."""

CLOSE: Final = 1e-4
"""Relative difference below which losses are those of the same examples: rounding."""

SAME_TRAINING: Final = 1e-3
"""The same, for losses that another device may have computed."""


def replay(
    run: Run,
    *,
    reference: TargetLike = "final",
    track: Track = iter,
    device: str | None = None,
    data_dir: str | None = None,
) -> xr.Dataset:
    """Compute the loss of every step's batch at a reference point.

    Model and data are built anew from ``run.attrs["training"]``. If nothing couples the
    examples of a batch (no batch normalisation, a loss that is a mean over examples) and
    nothing is drawn at random, one pass over the data does; whether that is so is tried on
    the first batch. Else every batch is replayed, forward only.

    Parameters
    ----------
    run : trajstore.Run
        Recorded by ``traj-train run NAME --record-samples``, or with full batches.
    reference : str, int, Run or mapping, default: "final"
        The point x*, as `analyzers.path_geometry` takes it.
    track : callable, default: iter
        Shows the progress over batches.
    device : str, optional
        As torch names it. Default: that of the training.
    data_dir : str, optional
        Where the data lie. Default: where they were.

    Returns
    -------
    xarray.Dataset
        Loaded. ``reference_loss`` (step), float64, in the units of the training's loss: r_k,
        the loss of the batch of step k at x*; NaN where its indices are lost.
        ``full_reference_loss``, f(x*), that of all training data, in batches of the
        training's size. ``attrs["method"]`` says how they were computed.

    Raises
    ------
    ValueError
        If the run does not say how it was trained, if the indices of examples were not
        recorded, or if what was built anew is not what was trained.
    KeyError, TypeError
        As `trajstore.parameters_at`.

    Notes
    -----
    As in training, batches are normalised by themselves, and buffers are left alone.
    Dropout is switched off: it would be drawn anew. So is augmentation, and r_k is then
    not the loss of the very images that were seen.

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
    point = find_target(run, reference)
    rebuilt = _rebuild(training)
    with undisturbed(rebuilt.model), torch.no_grad():
        rebuilt.prepare(training.seed)
        _check_rebuilt(run, rebuilt)
        _load(rebuilt.model, parameters_at(run, reference))
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
        "reference": point.label,
        "reference_note": point.note,
        "method": method,
        "computed_from": replayed_from(run, point),
    }
    return index_epochs(xr.Dataset(variables, coordinates, attributes))


def _training_of(run: Run, device: str | None, data_dir: str | None) -> Training:
    """Read how a run was trained."""
    found: Any = run.attrs.get("training", {})
    known = {field.name for field in fields(Training)}
    is_ours = isinstance(found, Mapping) and found.get("workload") in WORKLOADS
    if not is_ours or not found.keys() <= known:
        raise ValueError(
            f"{run.location} does not say how it was trained in a way that traj-train "
            "knows, so that its model and data cannot be built anew; compute the losses "
            "yourself and give them to analyzers.alpha_beta(run, reference_losses=...)."
        )
    training = Training(**found)
    given: dict[str, Any] = {"device": device, "data_dir": data_dir}
    return replace(training, **{k: v for k, v in given.items() if v is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rebuilt:
    """A training as it stood before its first step.

    Attributes
    ----------
    training : Training
        What it was.
    model : torch.nn.Module
        The model.
    task : Task
        The loss.
    data : Dataset
        What was learnt from; has a length.
    """

    training: Training
    model: nn.Module
    task: Task
    data: Any

    def prepare(self, seed: int) -> None:
        """Set the model to training without dropout, and fix what is drawn."""
        torch.manual_seed(seed)
        self.model.train()
        for module in self.model.modules():
            # The last two draw by themselves, if they were told to.
            if isinstance(module, (_DropoutNd, nn.MultiheadAttention, nn.RNNBase)):
                module.eval()

    def batch(self, indices: Indices) -> Batch:
        """Return a batch of certain examples, where the model is."""
        examples = [self.data[i] for i in indices.tolist()]
        [batch] = on_device_of(self.model, [default_collate(examples)])
        return batch

    def loss(self, batch: Batch) -> float:
        """Return the loss of a batch where the parameters are."""
        inputs, targets = batch
        return float(self.task.loss(self.model(inputs), targets))

    def loader(self, batches: Any = None) -> Iterator[Batch]:
        """Give certain batches, or all data in batches of the training's size."""
        size = self.training.batch_size if batches is None else 1
        loader = DataLoader(
            self.data,
            size,
            batch_sampler=batches,
            num_workers=self.training.num_workers,
        )
        return on_device_of(self.model, loader)


def _rebuild(training: Training) -> _Rebuilt:
    workload = WORKLOADS[training.workload]
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        splits = workload.data(training)
        model = workload.model(splits, training).to(device_of(training))
    data: Dataset[Any] = learnt_from(splits, training)
    return _Rebuilt(training=training, model=model, task=workload.task, data=data)


def _load(model: nn.Module, parameters: Mapping[str, Any]) -> None:
    state = {name: torch.from_numpy(values) for name, values in parameters.items()}
    model.load_state_dict(state, strict=False)


def _check_rebuilt(run: Run, rebuilt: _Rebuilt) -> None:
    """Compare the first recorded loss with that of what was built anew."""
    # What is drawn anew, or was dropped, has another loss; and where a recording began
    # late, the first parameters are not known.
    if rebuilt.training.full_batch or run.stored.document.resumes or run.n_steps == 0:
        return
    first = _indices(run, slice(0, 1))[0]
    recorded = float(run.steps["loss"][0]) if "loss" in run.metrics else np.nan
    if (first == NO_SAMPLE).all() or not np.isfinite(recorded):
        return
    examples = first[first != NO_SAMPLE]
    _check_examples(run, rebuilt, int(examples.max()))
    if _has_dropout(rebuilt.model) or _is_drawn(rebuilt, examples):
        return
    found = rebuilt.loss(rebuilt.batch(examples))
    if not np.isclose(found, recorded, rtol=SAME_TRAINING, atol=1e-6):
        raise ValueError(
            f"What was built anew is not what was trained in {run.location}: the loss of "
            f"its first step is {found:.6g}, recorded was {recorded:.6g}. Are the data "
            "the same (--data-dir), and the version of traj-train?"
        )


def _check_examples(run: Run, rebuilt: _Rebuilt, largest: int) -> None:
    if largest >= (n := len(rebuilt.data)):
        raise ValueError(
            f"{run.location} was trained on example {largest}, but the data have only {n} "
            "now. Are they the same (--data-dir)?"
        )


def _losses(run: Run, rebuilt: _Rebuilt, track: Track) -> tuple[Losses, float, str]:
    """Return the losses of steps and of all data, and how they were computed."""
    if rebuilt.training.full_batch:
        full = _of_all_data(rebuilt)
        some = np.arange(min(len(rebuilt.data), rebuilt.training.batch_size))
        method = _with_augmentation(ALL_DATA, is_drawn=_is_drawn(rebuilt, some))
        return np.full(run.n_steps, full), full, method
    counts = _count_examples(run, rebuilt)
    known = np.flatnonzero(counts)
    if len(known) == 0:
        full = _of_all_data(rebuilt)
        return np.full(run.n_steps, np.nan), full, BY_BATCH
    trial = _indices(run, slice(int(known[0]), int(known[0]) + 1))[0]
    trial = trial[trial != NO_SAMPLE]
    is_drawn = _is_drawn(rebuilt, trial)
    if not is_drawn and _is_mean(rebuilt, rebuilt.batch(trial)):
        of_examples = _of_examples(rebuilt, track)
        return _averaged(run, of_examples), float(of_examples.mean()), PER_EXAMPLE
    losses = np.full(run.n_steps, np.nan)
    batches = rebuilt.loader(_Batches(run, known))
    for step, batch in zip(track(range(len(known))), batches, strict=True):
        losses[known[step]] = rebuilt.loss(batch)
    method = _with_augmentation(BY_BATCH, is_drawn=is_drawn)
    return losses, _of_all_data(rebuilt), method


def _with_augmentation(method: str, *, is_drawn: bool) -> str:
    return f"{method}; {DRAWN_ANEW}" if is_drawn else method


def _indices(run: Run, steps: slice) -> Indices:
    indices: Indices = run.stored.rows(SAMPLES, steps)
    return indices


def _chunks(run: Run) -> Iterator[slice]:
    for start in range(0, run.n_steps, ROWS):
        yield slice(start, min(start + ROWS, run.n_steps))


def _count_examples(run: Run, rebuilt: _Rebuilt) -> npt.NDArray[np.int64]:
    """Count the known examples of every step."""
    counts = np.zeros(run.n_steps, np.int64)
    for steps in _chunks(run):
        indices = _indices(run, steps)
        _check_examples(run, rebuilt, int(indices.max(initial=NO_SAMPLE)))
        counts[steps] = (indices != NO_SAMPLE).sum(1)
    return counts


class _Batches:
    """Examples of the batches of steps, as a `torch.utils.data.DataLoader` takes them.

    Parameters
    ----------
    run : Run
        Says which.
    steps : numpy.ndarray
        Which steps, int64.
    """

    def __init__(self, run: Run, steps: npt.NDArray[np.int64]) -> None:
        self._run, self._steps = run, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps.tolist():
            row = _indices(self._run, slice(step, step + 1))[0]
            yield row[row != NO_SAMPLE].tolist()


def _has_dropout(model: nn.Module) -> bool:
    return any(
        isinstance(module, _DropoutNd) and module.p > 0 for module in model.modules()
    )


def _is_drawn(rebuilt: _Rebuilt, examples: Indices) -> bool:
    """Whether examples are other ones, or draw random numbers, when asked for again."""
    before = torch.get_rng_state()
    batches = [rebuilt.batch(examples) for _ in range(2)]
    draws = not torch.equal(before, torch.get_rng_state())
    return draws or not all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def _is_mean(rebuilt: _Rebuilt, batch: Batch) -> bool:
    """Whether the loss of a batch is the mean of what its examples lose alone."""
    # One with a single example in a batch refuses it.
    if any(isinstance(module, _BatchNorm) for module in rebuilt.model.modules()):
        return False
    inputs, targets = batch
    whole = rebuilt.model(inputs)
    parts = torch.cat([rebuilt.model(x) for x in inputs.tensor_split([1]) if len(x)])
    if not torch.allclose(whole, parts, rtol=CLOSE, atol=CLOSE):
        return False
    mean = _by_example(rebuilt.task, whole, targets).mean()
    return bool(np.isclose(mean, rebuilt.loss(batch), rtol=CLOSE, atol=1e-6))


def _by_example(task: Task, outputs: Tensor, targets: Tensor) -> Losses:
    losses = [
        task.loss(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(outputs))
    ]
    by_example: Losses = torch.stack(losses).double().cpu().numpy()
    return by_example


def _of_examples(rebuilt: _Rebuilt, track: Track) -> Losses:
    """Return the loss of every example of the data."""
    n_batches = -(-len(rebuilt.data) // rebuilt.training.batch_size)
    losses = [
        _by_example(rebuilt.task, rebuilt.model(inputs), targets)
        for _, (inputs, targets) in zip(
            track(range(n_batches)), rebuilt.loader(), strict=True
        )
    ]
    return np.concatenate(losses)


def _averaged(run: Run, of_examples: Losses) -> Losses:
    """Average the losses of examples over the batches of steps."""
    losses = np.empty(run.n_steps)
    for steps in _chunks(run):
        indices = _indices(run, steps)
        is_there = indices != NO_SAMPLE
        sums = np.where(is_there, of_examples[indices], 0).sum(1)
        with np.errstate(invalid="ignore"):
            losses[steps] = sums / is_there.sum(1)
    return losses


def _of_all_data(rebuilt: _Rebuilt) -> float:
    """Return the mean over all data, in batches of the training's size."""
    total = sum(rebuilt.loss(batch) * len(batch[0]) for batch in rebuilt.loader())
    return total / len(rebuilt.data)
