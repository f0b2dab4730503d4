"""Workloads on scikit-learn's digits, which need no download; settings are our own."""

from functools import partial
from typing import Any, Final

from torch import nn

from train.data import Splits
from train.data.digits import N_STANDARDIZED, digits, standardized_digits
from train.models.cnn import cnn
from train.models.mlp import mlp
from train.models.resnet import digits_resnet
from train.workloads.definition import Workload, by_name, embedded
from train.workloads.tasks import CLASSIFICATION, SQUARED_ERROR


def _digits(summary: str, workload: str, model: Any, **settings: Any) -> Workload:
    return embedded(
        summary,
        CLASSIFICATION,
        "scikit-learn's digits, 8 x 8",
        lambda _: Splits(*digits(), 10),
        lambda _, training: (
            model() if training.width is None else model(width=training.width)
        ),
        workload=workload,
        epochs=25,
        batch_size=64,
        **settings,
    )


_RESNET: Final = {"optimizer": "momentum", "lr": 0.02, "weight_decay": 5e-4}

DIGITS: Final = by_name(
    _digits(
        "a ResNet with batch normalisation on digits",
        "digits-resnet",
        digits_resnet,
        **_RESNET,
    ),
    _digits(
        "the same ResNet with twice the channels",
        "digits-resnet-wide",
        partial(digits_resnet, width=2),
        **_RESNET,
    ),
    _digits(
        "the same ResNet with twice the blocks",
        "digits-resnet-deep",
        partial(digits_resnet, n_blocks=2),
        **_RESNET,
    ),
    _digits(
        "a fully connected network on digits",
        "digits-mlp",
        lambda width: mlp([64, width, width, 10]),
        optimizer="sgd",
        lr=0.05,
        width=512,
    ),
    _digits(
        "two convolutions and a linear layer on digits",
        "digits-cnn",
        partial(cnn, 1, 8, 10),
        optimizer="momentum",
        lr=0.02,
        width=64,
    ),
    embedded(
        "gradient descent of a small tanh network on digits: the edge of stability",
        SQUARED_ERROR,
        f"the first {N_STANDARDIZED} of scikit-learn's digits, 8 x 8, standardized",
        lambda _: Splits(standardized_digits(), None, 10),
        lambda *_: mlp([64, 64, 64, 10], nn.Tanh),
        workload="digits-tanh",
        epochs=800,
        batch_size=N_STANDARDIZED,
        full_batch=True,
        optimizer="sgd",
        lr=0.4,
    ),
)
