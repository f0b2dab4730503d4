"""The training loop that all workloads share."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from train.controls import RandomLabels, replace_by_noise, with_label_noise
from train.data import Splits
from train.data.indexed import IndexedDataset
from train.evaluation import (
    accumulate_gradients,
    evaluate,
    fixed_batches,
    random_state,
    set_random_state,
)
from train.kernel import kernel_of
from train.observer import Log, Observer, Track
from train.optimizers import make_optimizer
from train.scaling import scaled
from train.schedules import learning_rate, weight_decay
from train.settings import Training
from train.sharpness import sharpness_of
from train.workloads.catalogue import WORKLOADS
from train.workloads.known import check_width
from train.workloads.tasks import Task
from trajstore.evaluation.restored_state import restored_state
from trajstore.evaluation.setup import Batch, on_device_of
from trajstore.format.attrs import FIXED_BATCHES, FULL_BATCH, SAME_BATCH
from trajstore.optim.ngn import NGN
from trajstore.optim.sps_max import SPSmax

Save = Callable[[dict[str, Any], Log], None]
"""Called between two epochs with two arguments: the state to resume from, and the observer."""


def train(
    training: Training,
    observe: Observer,
    track: Track = iter,
    *,
    start: Mapping[str, Any] | None = None,
    save: Save | None = None,
) -> nn.Module:
    """Train a workload under an observer, optionally from a state that `save` received."""
    workload = WORKLOADS[training.workload]
    if training.data not in workload.notes:
        raise ValueError(
            f"{training.workload} has no {training.data} data, only "
            f"{' and '.join(workload.notes)}."
        )
    check_width(training)
    torch.manual_seed(training.seed)
    splits = workload.data(training)
    model, task = scaled(
        workload.model(splits, training).to(device_of(training)),
        workload.task,
        training.output_scale,
    )
    if training.control == "random-walk":
        # Plain SGD, because steps of a random walk do not depend on earlier steps.
        training = replace(training, optimizer="sgd", weight_decay=0.0)
    optimizer = make_optimizer(model, training)
    data = training_data(splits, training)
    loop = _Loop(training, model, optimizer, task, data, splits.n_classes)
    first = 0
    if start is not None:
        first = start["epoch"]
        if "model" in start:
            model.load_state_dict(start["model"])
        if "optimizer" in start:
            optimizer.load_state_dict(start["optimizer"])
        if "rng" in start:
            torch.set_rng_state(start["rng"])
        loop.sharpness_directions.update(start.get("directions", {}))
        if loop.kernel is not None:
            loop.kernel.initial = start.get("kernel")
    # The scores at the end of an epoch are logged with the next step, which starts from the
    # evaluated parameters; no step follows the last epoch, so its scores go to the last step.
    with observe(
        model,
        optimizer,
        steps_per_epoch=loop.steps_per_epoch,
        total_steps=loop.total_steps,
    ) as observer:
        for epoch in track(range(first, loop.n_epochs)):
            loop.epoch(epoch, observer)
            if splits.validation is not None:
                loader = DataLoader(
                    splits.validation,
                    training.batch_size,
                    num_workers=training.num_workers,
                )
                scores = evaluate(model, task, loader)
                observer.log(**scores)
            if save is not None and epoch + 1 < loop.n_epochs:
                state = {
                    "epoch": epoch + 1,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "rng": torch.get_rng_state(),
                    "directions": loop.sharpness_directions,
                    "kernel": None if loop.kernel is None else loop.kernel.initial,
                }
                save(state, observer)
    return model


def training_data(splits: Splits, training: Training) -> Dataset[Any]:
    """Return the training data, with permuted labels if the settings ask for them."""
    if training.control == "random-labels":
        return RandomLabels(splits.train, training.seed)
    return splits.train


def device_of(training: Training) -> torch.device:
    """Return the device of a training run."""
    if training.device is not None:
        return torch.device(training.device)
    # Without the check, torch returns the accelerator it was built for, even if absent.
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


class _Loop:
    """Takes the steps and measurements of one training run, epoch by epoch."""

    def __init__(
        self,
        training: Training,
        model: nn.Module,
        optimizer: Optimizer,
        task: Task,
        data: Dataset[Any],
        n_classes: int,
    ) -> None:
        self._training, self._model, self._task = training, model, task
        self._optimizer, self._data, self._n_classes = optimizer, data, n_classes
        records_samples = training.record_samples and not training.full_batch
        self._loader = DataLoader(
            IndexedDataset(data) if records_samples else data,
            training.batch_size,
            shuffle=True,
            drop_last=not training.full_batch,
            num_workers=training.num_workers,
        )
        self.steps_per_epoch = 1 if training.full_batch else len(self._loader)
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"There are fewer examples than batch_size = {training.batch_size}; "
                "choose a smaller batch size."
            )
        planned = training.epochs * self.steps_per_epoch
        self.total_steps = min(planned, training.max_steps or planned)
        self.n_epochs = -(-self.total_steps // self.steps_per_epoch)
        self._fixed_batches: list[Batch] = []
        if training.measure_every:
            self._fixed_batches = fixed_batches(
                data, training.batch_size, training.seed
            )
        self._sharpness = (
            sharpness_of(training, model, optimizer, task, data)
            if training.sharpness_every
            else None
        )
        self.kernel = (
            kernel_of(training, model, data) if training.kernel_every else None
        )

    @property
    def sharpness_directions(self) -> dict[str, Tensor]:
        """Starting vectors for the next sharpness measurements, by name."""
        return {} if self._sharpness is None else self._sharpness.directions

    def epoch(self, epoch: int, observer: Log) -> None:
        """Take the steps and measurements of an epoch."""
        training = self._training
        if training.full_gradients:
            self._measure_all_data(observer)
        first = epoch * self.steps_per_epoch
        n_steps = min(self.steps_per_epoch, self.total_steps - first)
        # Not strict, because `max_steps` can end the last epoch before all data are used.
        for step, batches in zip(
            range(first, first + n_steps), self._batches(observer), strict=False
        ):
            if training.measure_every and step % training.measure_every == 0:
                self._measure_fixed_batches(observer)
            if self._sharpness is not None and step % training.sharpness_every == 0:
                observer.log(**self._sharpness.measure())
            if self.kernel is not None and step % training.kernel_every == 0:
                observer.log(**self.kernel.measure())
            if training.same_batch_every and step % training.same_batch_every == 0:
                self._step_and_remeasure(step, batches, observer)
            else:
                self._step(step, self._with_noise(batches, step), observer)

    def _batches(self, observer: Log) -> Iterator[Iterable[Batch]]:
        """Yield the batches of each step: one batch, or all batches of a full-batch step."""
        if self._training.full_batch:
            yield self._loader
            return
        for inputs, targets, *indices in self._loader:
            if indices:
                observer.log_samples(indices[0])
            yield list(on_device_of(self._model, [(inputs, targets)]))

    def _step(self, step: int, batches: Iterable[Batch], observer: Log) -> None:
        training, optimizer = self._training, self._optimizer
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, step, self.steps_per_epoch)
            group["weight_decay"] = weight_decay(training, step, self.steps_per_epoch)
        optimizer.zero_grad()
        loss: Tensor | float
        if training.full_batch:
            loss = accumulate_gradients(self._model, self._task, batches)
            observer.log(loss=loss)
        else:
            [(inputs, targets)] = batches
            outputs = self._model(inputs)
            loss = self._task.loss(outputs, targets)
            loss.backward()
            observer.log(loss=loss, **self._task.scores(outputs, targets, loss))
        if training.clip is not None:
            clip_grad_norm_(self._model.parameters(), training.clip)
        if training.control == "noise-gradients":
            replace_by_noise(self._model.parameters(), training.seed, step)
        if training.control == "random-walk":
            replace_by_noise(self._model.parameters(), training.seed, step, norm=1.0)
        if isinstance(optimizer, SPSmax | NGN):
            optimizer.step(loss=loss)
        else:
            optimizer.step()

    def _step_and_remeasure(
        self, step: int, batches: Iterable[Batch], observer: Log
    ) -> None:
        """Take a step, then measure the gradient of its batch at the new parameters."""
        device = next(self._model.parameters()).device
        before = random_state(device)
        self._step(step, self._with_noise(batches, step), observer)
        with restored_state(self._model):
            # Repeat the step's dropout masks, and the order of all data in a full batch.
            set_random_state(device, before)
            self._measure(observer, SAME_BATCH, self._with_noise(batches, step))

    def _with_noise(self, batches: Iterable[Batch], step: int) -> Iterable[Batch]:
        """Replace labels by noise if the settings ask for it."""
        if self._training.control != "label-noise":
            return batches
        return with_label_noise(batches, self._n_classes, self._training.seed, step)

    def _measure_fixed_batches(self, observer: Log) -> None:
        """Measure the gradients of the fixed batches, in training mode."""
        for i, batch in enumerate(self._fixed_batches):
            self._measure(observer, FIXED_BATCHES, [batch], batch=float(i))

    def _measure_all_data(self, observer: Log) -> None:
        """Measure the gradient of all training data at the current parameters."""
        training = self._training
        loader = DataLoader(
            self._data, training.batch_size, num_workers=training.num_workers
        )
        # The published code of "No Wrong Turns" (arXiv 2306.11922) pairs this gradient with
        # the parameters before the previous step.
        self._measure(observer, FULL_BATCH, loader)

    def _measure(
        self, observer: Log, name: str, batches: Any, **scalars: float
    ) -> None:
        self._optimizer.zero_grad()
        with restored_state(self._model):
            loss = accumulate_gradients(self._model, self._task, batches)
        observer.measure(name, loss=loss, **scalars)
