"""Workloads of the paper on the alpha-beta condition.

R. Islamov, N. Ajroldi, A. Orvieto, A. Lucchi, "Loss Landscape Characterization of Neural
Networks without Over-Parametrization", NeurIPS 2024, arXiv 2410.12455. The paper gives the
data, kinds of models, optimizers, step sizes, epochs and the batch sizes for images. It also
gives the widths and batch sizes that it varies. Our own choices are: plain SGD if the paper
names no optimizer, the widths that the paper does not vary, the first layer of the CNN,
sequences of 35 words in batches of 20, the momentum and step decay of normalised SGD, seeds,
no augmentation, and the test images as validation data. `alpha_beta_large` has the runs on
Criteo, fastMRI, OGBG, WMT and SlimPajama.

We have not tested the LSTMs' initial step sizes, 158 and 900, on the full data. With a small
LSTM on the stand-in data, 158 increases the loss in the first 64 steps, whereas training works
with 10.
"""

from functools import partial
from typing import Any, Final

from torch import nn

from train.data import Splits
from train.data.cifar10 import whole_cifar10
from train.data.cifar100 import cifar100
from train.data.fashion_mnist import fashion_mnist
from train.data.penn_treebank import penn_treebank
from train.data.wikitext2 import wikitext2
from train.models.cnn import cnn
from train.models.lstm import lstm_language_model
from train.models.mlp import mlp
from train.models.resnet import cifar_resnet18, cifar_resnet34
from train.models.resnet9 import resnet9
from train.settings import Training
from train.workloads import half_space
from train.workloads.definition import Workload, by_name, embedded, published
from train.workloads.tasks import CLASSIFICATION, LANGUAGE, minimization

CONTEXT: Final = 35
"""Number of words in a sequence."""


def _lstm(
    summary: str, workload: str, notes: tuple[str, str], load: Any, lr: float
) -> Workload:
    def model(splits: Splits, training: Training) -> nn.Module:
        assert training.width is not None
        return lstm_language_model(splits.n_classes, training.width)

    return published(
        summary,
        LANGUAGE,
        notes,
        load,
        model,
        workload=workload,
        epochs=1000,
        batch_size=20,
        optimizer="nsgd",
        lr=lr,
        schedule="decaying",
        width=1473,
    )


def _deep(summary: str, workload: str, model: Any) -> Workload:
    return published(
        f"{summary} on CIFAR-100",
        CLASSIFICATION,
        ("CIFAR-100", "digits of 32 x 32 instead of CIFAR-100"),
        cifar100,
        lambda splits, _: model(n_classes=splits.n_classes),
        workload=workload,
        epochs=1000,
        batch_size=64,
        optimizer="momentum",
        lr=0.01,
    )


ALPHA_BETA: Final = by_name(
    published(
        "a perceptron of three layers on Fashion-MNIST",
        CLASSIFICATION,
        ("Fashion-MNIST", "digits of 28 x 28 instead of Fashion-MNIST"),
        fashion_mnist,
        lambda _, training: mlp([784, training.width, training.width, 10]),
        workload="fmnist-mlp",
        epochs=1500,
        batch_size=64,
        optimizer="sgd",
        lr=0.09,
        width=512,
    ),
    published(
        "two convolutions and a linear layer on CIFAR-10",
        CLASSIFICATION,
        ("CIFAR-10", "digits of 32 x 32 instead of CIFAR-10"),
        whole_cifar10,
        lambda _, training: cnn(3, 32, 10, width=training.width),
        workload="cifar-cnn",
        epochs=1500,
        batch_size=64,
        optimizer="sgd",
        lr=0.01,
        schedule="cosine",
        width=128,
    ),
    published(
        "ResNet-9 on CIFAR-100",
        CLASSIFICATION,
        ("CIFAR-100", "digits of 32 x 32 instead of CIFAR-100"),
        cifar100,
        lambda splits, _: resnet9(splits.n_classes),
        workload="cifar100-resnet9",
        epochs=1000,
        batch_size=64,
        optimizer="sgd",
        lr=0.01,
        schedule="one-cycle",
    ),
    _deep("ResNet-18", "cifar100-resnet18", cifar_resnet18),
    _deep("ResNet-34", "cifar100-resnet34", cifar_resnet34),
    _lstm(
        "three LSTM layers on Penn Treebank",
        "ptb-lstm",
        ("Penn Treebank", "Python's documentation instead of Penn Treebank"),
        partial(penn_treebank, context=CONTEXT),
        lr=158.0,
    ),
    _lstm(
        "three LSTM layers on WikiText-2",
        "wikitext2-lstm",
        ("WikiText-2", "Python's documentation instead of WikiText-2"),
        lambda data, directory: wikitext2(
            data,
            directory,
            context=CONTEXT,
            min_frequency=1 if data == "true" else 5,
        ),
        lr=900.0,
    ),
    embedded(
        "a half-space in ten dimensions, with the sigmoid loss",
        minimization(half_space.half_space_loss),
        "normal random numbers",
        lambda training: half_space.half_space_data(training.seed),
        lambda *_: half_space.HalfSpace(),
        workload="halfspace",
        epochs=100,
        batch_size=1,
        optimizer="sgd",
        lr=0.25,
    ),
)
