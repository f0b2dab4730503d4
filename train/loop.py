"""The training loop of all workloads."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, Optimizer
from torch.utils.data import DataLoader, Dataset

from train.controls import RandomLabels, replace_by_noise, with_label_noise
from train.curvature.sharpness import Sharpness
from train.data import Splits
from train.data.indexed import Numbered
from train.evaluation import (
    Batch,
    accumulate_gradients,
    evaluate,
    fixed_batches,
    on_device_of,
    random_state,
    set_random_state,
    undisturbed,
)
from train.observer import Log, Observer, Track
from train.optim.ngn import NGN
from train.optim.normalized_sgd import NormalizedSGD
from train.optim.sps_max import SPSmax
from train.schedules import learning_rate, weight_decay
from train.settings import Training
from train.workloads.catalogue import WORKLOADS, check_width
from train.workloads.tasks import Task

Save = Callable[[dict[str, Any], Log], None]
"""Takes what is needed to go on, and the observer, after every epoch."""

OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "momentum": partial(SGD, momentum=0.9),
    "adam": Adam,
    "nsgd": NormalizedSGD,
    "spsmax": SPSmax,
    "ngn": NGN,
}


def train(
    training: Training,
    observe: Observer,
    track: Track = iter,
    *,
    start: Mapping[str, Any] | None = None,
    save: Save | None = None,
) -> nn.Module:
    """Train under observation.

    Scores of the validation data are logged after every epoch, and so belong to the next
    step, which begins with the parameters that they are of; those of the end belong to the
    last step.

    Parameters
    ----------
    training : Training
        What to do.
    observe : Observer
        Is told of every step.
    track : callable, default: iter
        Shows the progress over epochs.
    start : mapping, optional
        What `save` was given, to go on from there. Of model, optimizer and random stream
        those that are missing are as at the beginning.
    save : callable, optional
        Is called after every epoch but the last.

    Returns
    -------
    torch.nn.Module
        The model.

    Raises
    ------
    ValueError
        If the workload has no data of the kind, or less than a batch, or no width to
        choose; or as its data set raises it.
    """
    workload = WORKLOADS[training.workload]
    if training.data not in workload.notes:
        raise ValueError(
            f"{training.workload} has no {training.data} data, only "
            f"{' and '.join(workload.notes)}."
        )
    check_width(training)
    torch.manual_seed(training.seed)
    splits = workload.data(training)
    model = workload.model(splits, training).to(device_of(training))
    if training.control == "random-walk":
        # The steps of a walk depend on nothing, and so neither on steps before them.
        training = replace(training, optimizer="sgd", weight_decay=0.0)
    # Weight decay is set before every step, as learning rates are.
    optimizer = OPTIMIZERS[training.optimizer](model.parameters(), lr=training.lr)
    data = learnt_from(splits, training)
    loop = _Loop(training, model, optimizer, workload.task, data, splits.n_classes)
    first = 0
    if start is not None:
        first = start["epoch"]
        if "model" in start:
            model.load_state_dict(start["model"])
        if "optimizer" in start:
            optimizer.load_state_dict(start["optimizer"])
        if "rng" in start:
            torch.set_rng_state(start["rng"])
        loop.directions.update(start.get("directions", {}))
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
                scores = evaluate(model, workload.task, loader)
                observer.log(**scores)
            if save is not None and epoch + 1 < loop.n_epochs:
                state = {
                    "epoch": epoch + 1,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "rng": torch.get_rng_state(),
                    "directions": loop.directions,
                }
                save(state, observer)
    return model


def learnt_from(splits: Splits, training: Training) -> Dataset[Any]:
    """Return the data that a training learns from, with the labels that it sees."""
    if training.control == "random-labels":
        return RandomLabels(splits.train, training.seed)
    return splits.train


def device_of(training: Training) -> torch.device:
    """Return where a training takes place."""
    if training.device is not None:
        return torch.device(training.device)
    # A build for an accelerator names it also where there is none.
    found = torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


class _Loop:
    """Goes through epochs.

    Parameters
    ----------
    training : Training
        What to do.
    model : torch.nn.Module
        The model.
    optimizer : torch.optim.Optimizer
        Of all of its parameters.
    task : Task
        The loss.
    data : Dataset
        What is learnt from.
    n_classes : int
        That there are in it.
    """

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
        records = training.record_samples and not training.full_batch
        self._loader = DataLoader(
            Numbered(data) if records else data,
            training.batch_size,
            shuffle=True,
            drop_last=not training.full_batch,
            num_workers=training.num_workers,
        )
        self.steps_per_epoch = 1 if training.full_batch else len(self._loader)
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"There are fewer examples than batch_size = {training.batch_size}; "
                "choose a smaller one."
            )
        planned = training.epochs * self.steps_per_epoch
        self.total_steps = min(planned, training.max_steps or planned)
        self.n_epochs = -(-self.total_steps // self.steps_per_epoch)
        self._fixed: list[Batch] = []
        if training.measure_every:
            self._fixed = fixed_batches(data, training.batch_size, training.seed)
        self._sharpness: Sharpness | None = None
        if training.sharpness_every:
            self._sharpness = Sharpness(training, model, optimizer, task, data)

    @property
    def directions(self) -> dict[str, Tensor]:
        """What has to be kept for the next measurements of sharpness to be the same."""
        return {} if self._sharpness is None else self._sharpness.directions

    def epoch(self, epoch: int, observer: Log) -> None:
        """Take the steps of an epoch."""
        if self._training.full_gradients:
            self._measure_all(observer)
        first = epoch * self.steps_per_epoch
        n_steps = min(self.steps_per_epoch, self.total_steps - first)
        for step, batches in zip(
            range(first, first + n_steps), self._batches(observer), strict=False
        ):
            every = self._training.measure_every
            if every and step % every == 0:
                self._measure_fixed(observer)
            every = self._training.sharpness_every
            if self._sharpness is not None and step % every == 0:
                observer.log(**self._sharpness.measure())
            every = self._training.same_batch_every
            if every and step % every == 0:
                self._step_and_look_back(step, batches, observer)
            else:
                self._step(step, self._as_labelled(batches, step), observer)

    def _batches(self, observer: Log) -> Iterator[Iterable[Batch]]:
        """Give the batches of every step: one, or all of them."""
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

    def _step_and_look_back(
        self, step: int, batches: Iterable[Batch], observer: Log
    ) -> None:
        """Take a step, and measure the gradient of its examples where it has led.

        With the same dropout, if any, and with all data in the same order.
        """
        device = next(self._model.parameters()).device
        before = random_state(device)
        self._step(step, self._as_labelled(batches, step), observer)
        with undisturbed(self._model):
            set_random_state(device, before)
            self._measure(observer, "same_batch", self._as_labelled(batches, step))

    def _as_labelled(self, batches: Iterable[Batch], step: int) -> Iterable[Batch]:
        """Give batches the labels that a step sees."""
        if self._training.control != "label-noise":
            return batches
        return with_label_noise(batches, self._n_classes, self._training.seed, step)

    def _measure_fixed(self, observer: Log) -> None:
        """Measure the gradients of the fixed batches, in training mode."""
        for i, batch in enumerate(self._fixed):
            self._measure(observer, "fixed_batches", [batch], batch=float(i))

    def _measure_all(self, observer: Log) -> None:
        """Measure the gradient of all training data where the parameters are.

        The published code pairs it with the parameters of a step before.
        """
        training = self._training
        loader = DataLoader(
            self._data, training.batch_size, num_workers=training.num_workers
        )
        self._measure(observer, "full_batch", loader)

    def _measure(
        self, observer: Log, name: str, batches: Any, **scalars: float
    ) -> None:
        self._optimizer.zero_grad()
        with undisturbed(self._model):
            loss = accumulate_gradients(self._model, self._task, batches)
        observer.measure(name, loss=loss, **scalars)
