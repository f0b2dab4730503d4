"""Rebuild the model and data of a training run from its settings."""

import torch

from train.loop import device_of, training_data
from train.scaling import scaled
from train.settings import Training
from train.workloads.catalogue import WORKLOADS
from trajstore.evaluation.setup import TrainingSetup


def rebuild(training: Training) -> TrainingSetup:
    """Rebuild the model and data of a training run; torch's random streams stay the same."""
    workload = WORKLOADS[training.workload]
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        splits = workload.data(training)
        model, task = scaled(
            workload.model(splits, training).to(device_of(training)),
            workload.task,
            training.output_scale,
        )
    return TrainingSetup(
        model=model,
        loss=task.loss,
        data=training_data(splits, training),
        batch_size=training.batch_size,
        full_batch=training.full_batch,
        seed=training.seed,
        num_workers=training.num_workers,
    )
