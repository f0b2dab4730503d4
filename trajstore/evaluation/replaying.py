"""Evaluate the losses of the recorded batches at another point.

The alpha-beta condition (R. Islamov et al., 2024) compares the loss of step k's batch at
x_k with the loss of the same batch at x*. If the indices of the examples were recorded, the
loss at x* needs neither a second training run nor a backward pass.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from trajstore.evaluation.restored_state import restored_state
from trajstore.evaluation.setup import Batch, Indices, TrainingSetup
from trajstore.format.arrays import NO_SAMPLE, SAMPLES, STEP
from trajstore.reading.epochs import index_epochs
from trajstore.reading.results import replayed_from
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike, find_target, parameters_at

Losses = npt.NDArray[np.float64]

Track = Callable[[range], Iterable[int]]
"""Yields the numbers of a range, and shows progress."""

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


class OtherTrainingError(ValueError):
    """The given model, loss and data are not those of the recorded run."""


def replay(
    run: Run,
    setup: TrainingSetup,
    *,
    reference: TargetLike = "final",
    track: Track = iter,
) -> xr.Dataset:
    """Compute the loss of every step's batch at a target.

    One pass over the data is enough if the examples of a batch are independent (no batch
    normalisation, and a loss that is a mean over examples) and nothing is random; both are
    tested on the first batch. Otherwise every batch is replayed with a forward pass.

    Parameters
    ----------
    run : trajstore.Run
        A run that has the indices of its examples (`Recorder.log_samples`), or whose steps
        used all data.
    setup : TrainingSetup
        Model, loss and data of the run. The model keeps its parameters, buffers and mode.
    reference : str, int, Run or mapping, default: "final"
        The target x*, given as in `analyzers.path_geometry`.
    track : callable, default: iter
        Iterates over the batches and shows progress.

    Returns
    -------
    xarray.Dataset
        Loaded, with two variables in the units of the training loss. ``reference_loss``
        (step), float64, is r_k, the loss of step k's batch at x*, or NaN if the indices of
        the batch are missing. ``full_reference_loss`` is f(x*), the loss of all training
        data, computed in batches of the same size as in training. ``attrs["method"]`` says
        how the losses were computed. `analyzers.alpha_beta` takes ``reference_loss``.

    Raises
    ------
    ValueError
        If the indices of examples were not recorded.
    OtherTrainingError
        If the loss of the first step differs from the recorded loss, or if there are fewer
        examples than the run used.
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
    if not (setup.full_batch or run.spec.samples):
        raise ValueError(
            f"The indices of examples are not recorded in {run.location}; record them with "
            "Recorder(..., samples=batch_size) and recorder.log_samples(indices)."
        )
    target = find_target(run, reference)
    with restored_state(setup.model, parameters=True), torch.no_grad():
        torch.manual_seed(setup.seed)
        setup.disable_dropout()
        _check_setup(run, setup)
        setup.load(parameters_at(run, reference))
        losses, full, method = _losses(run, setup, track)
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


def _check_setup(run: Run, setup: TrainingSetup) -> None:
    """Refuse a model whose loss in the first step is not the recorded loss."""
    # The losses cannot be compared if dropout or augmentation makes them random. A recording
    # that was resumed may have begun after the first step of training, at unknown parameters.
    if setup.full_batch or run.stored.document.resumes or run.n_steps == 0:
        return
    indices = _indices(run, slice(0, 1))[0]
    recorded = float(run.steps["loss"][0]) if "loss" in run.metrics else np.nan
    if (indices == NO_SAMPLE).all() or not np.isfinite(recorded):
        return
    examples = indices[indices != NO_SAMPLE]
    _check_examples(run, setup, int(examples.max()))
    if setup.has_dropout() or _is_random(setup, examples):
        return
    setup.load(parameters_at(run, int(run.stored.epochs[0])))
    replayed = setup.batch_loss(setup.batch(examples))
    if not np.isclose(replayed, recorded, rtol=DEVICE_RTOL, atol=1e-6):
        raise OtherTrainingError(
            f"The given model, loss and data differ from those of {run.location}: the loss of "
            f"the first step is {replayed:.6g}, but {recorded:.6g} was recorded. Give those "
            "with which the run was trained."
        )


def _check_examples(run: Run, setup: TrainingSetup, largest: int) -> None:
    if largest >= (n := len(setup.data)):
        raise OtherTrainingError(
            f"{run.location} was trained on example {largest}, but the data have only {n} "
            "examples; give the data on which the run was trained."
        )


def _losses(run: Run, setup: TrainingSetup, track: Track) -> tuple[Losses, float, str]:
    """Return the loss of each step, (step,), the loss of all data, and the method."""
    if setup.full_batch:
        full = setup.mean_loss()
        examples = np.arange(min(len(setup.data), setup.batch_size))
        method = _method(ALL_DATA, is_random=_is_random(setup, examples))
        return np.full(run.n_steps, full), full, method
    counts = _count_examples(run, setup)
    known_steps = np.flatnonzero(counts)
    if len(known_steps) == 0:
        return np.full(run.n_steps, np.nan), setup.mean_loss(), BY_BATCH
    trial = _indices(run, slice(int(known_steps[0]), int(known_steps[0]) + 1))[0]
    trial = trial[trial != NO_SAMPLE]
    is_random = _is_random(setup, trial)
    if not is_random and _is_mean(setup, setup.batch(trial)):
        example_losses = _all_example_losses(setup, track)
        losses = _average_over_steps(run, example_losses)
        return losses, float(example_losses.mean()), PER_EXAMPLE
    losses = np.full(run.n_steps, np.nan)
    batches = setup.batches(_BatchIndices(run, known_steps))
    for i, batch in zip(track(range(len(known_steps))), batches, strict=True):
        losses[known_steps[i]] = setup.batch_loss(batch)
    method = _method(BY_BATCH, is_random=is_random)
    return losses, setup.mean_loss(), method


def _method(method: str, *, is_random: bool) -> str:
    return f"{method}; {AUGMENTATION_REDRAWN}" if is_random else method


def _indices(run: Run, steps: slice) -> Indices:
    """Return the recorded indices of examples, int64 (step, sample)."""
    indices: Indices = run.stored.rows(SAMPLES, steps)
    return indices


def _step_ranges(run: Run) -> Iterator[slice]:
    for start in range(0, run.n_steps, STEPS_PER_READ):
        yield slice(start, min(start + STEPS_PER_READ, run.n_steps))


def _count_examples(run: Run, setup: TrainingSetup) -> npt.NDArray[np.int64]:
    """Return the number of known examples in each step, int64 (step,)."""
    counts = np.zeros(run.n_steps, np.int64)
    for steps in _step_ranges(run):
        indices = _indices(run, steps)
        _check_examples(run, setup, int(indices.max(initial=NO_SAMPLE)))
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


def _is_random(setup: TrainingSetup, examples: Indices) -> bool:
    """Whether reading the same examples twice gives different data or uses randomness."""
    before = torch.get_rng_state()
    batches = [setup.batch(examples) for _ in range(2)]
    draws = not torch.equal(before, torch.get_rng_state())
    return draws or not all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def _is_mean(setup: TrainingSetup, batch: Batch) -> bool:
    """Whether the loss of a batch is the mean of the losses of its single examples."""
    # Batch normalisation does not accept a single example.
    if setup.has_batch_norm():
        return False
    inputs, targets = batch
    whole = setup.model(inputs)
    parts = torch.cat([setup.model(x) for x in inputs.tensor_split([1]) if len(x)])
    if not torch.allclose(whole, parts, rtol=ROUNDING_RTOL, atol=ROUNDING_RTOL):
        return False
    mean = _example_losses(setup, whole, targets).mean()
    return bool(
        np.isclose(mean, setup.batch_loss(batch), rtol=ROUNDING_RTOL, atol=1e-6)
    )


def _example_losses(setup: TrainingSetup, outputs: Tensor, targets: Tensor) -> Losses:
    """Return the loss of every example in a batch, float64 (example,)."""
    losses = [
        setup.loss(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(outputs))
    ]
    result: Losses = torch.stack(losses).double().cpu().numpy()
    return result


def _all_example_losses(setup: TrainingSetup, track: Track) -> Losses:
    """Return the loss of every example in the data, float64 (example,)."""
    n_batches = -(-len(setup.data) // setup.batch_size)
    losses = [
        _example_losses(setup, setup.model(inputs), targets)
        for _, (inputs, targets) in zip(
            track(range(n_batches)), setup.batches(), strict=True
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
