"""Workloads of "No Wrong Turns": CIFAR-10, ImageNet, WikiText-2 and Vaihingen.

C. Guille-Escuret, H. Naganuma, K. Fatras, I. Mitliagkas, "No Wrong Turns: The Simple
Geometry Of Neural Networks Optimization Paths", 2023, arXiv 2306.11922. Settings are those of
the paper (tables 1 to 5) where it states them. The clipping of the language model, and all
seeds except those of the seed experiment, are taken from the published code. That code
measures gradients before clipping, whereas we record them after clipping: gamma is the same,
but RSI and EB are smaller by the clipping factor.
"""

from functools import partial
from typing import Any, Final

from train.data.cifar10 import cifar10
from train.data.imagenet import imagenet
from train.data.vaihingen import vaihingen
from train.data.wikitext2 import wikitext2
from train.models.imagenet_resnet import (
    imagenet_resnet18,
    imagenet_resnet50,
    imagenet_resnet152,
)
from train.models.mlp import medium_mlp
from train.models.resnet import cifar_resnet18
from train.models.segnet import segnet
from train.models.unet import unet
from train.models.word_language_model import word_language_model
from train.workloads.definition import Workload, by_name, published
from train.workloads.tasks import CLASSIFICATION, LANGUAGE


def _cifar(summary: str, workload: str, model: Any) -> Workload:
    return published(
        summary,
        CLASSIFICATION,
        ("CIFAR-10", "digits of 32 x 32 instead of CIFAR-10"),
        cifar10,
        lambda *_: model(),
        workload=workload,
        epochs=190 if workload == "cifar-resnet18" else 150,
        batch_size=256,
        optimizer="momentum",
        lr=0.01,
        weight_decay=1e-6,
        seed=1234,
    )


def _imagenet(summary: str, workload: str, model: Any, width: float = 1) -> Workload:
    return published(
        summary,
        CLASSIFICATION,
        ("ImageNet-1K", "digits of 32 x 32 instead of ImageNet-1K"),
        imagenet,
        lambda *_: model(width),
        workload=workload,
        epochs=90,
        batch_size=256,
        optimizer="momentum",
        lr=0.1,
        weight_decay=1e-6,
        schedule="cosine",
        warmup_epochs=3,
        seed=1234,
    )


def _vaihingen(summary: str, workload: str, model: Any) -> Workload:
    return published(
        summary,
        CLASSIFICATION,
        ("ISPRS Vaihingen", "generated shapes instead of Vaihingen"),
        vaihingen,
        lambda *_: model(),
        workload=workload,
        epochs=26,
        batch_size=10,
        optimizer="momentum",
        lr=0.01,
        weight_decay=1e-5,
        schedule="last-epoch-tenth",
        seed=1234,
    )


NO_WRONG_TURNS: Final = by_name(
    _cifar("ResNet-18 on CIFAR-10", "cifar-resnet18", cifar_resnet18),
    _cifar(
        "ResNet-18 of double width on CIFAR-10",
        "cifar-resnet18-2",
        partial(cifar_resnet18, 2),
    ),
    _cifar("Medium-MLP on CIFAR-10", "cifar-mlp", medium_mlp),
    _imagenet("ResNet-18 on ImageNet", "imagenet-resnet18", imagenet_resnet18),
    _imagenet(
        "ResNet-18 of double width on ImageNet",
        "imagenet-resnet18-2",
        imagenet_resnet18,
        2,
    ),
    _imagenet("ResNet-50 on ImageNet", "imagenet-resnet50", imagenet_resnet50),
    _imagenet(
        "ResNet-50 of double width on ImageNet",
        "imagenet-resnet50-2",
        imagenet_resnet50,
        2,
    ),
    _imagenet(
        "ResNet-152 of half the width on ImageNet",
        "imagenet-resnet152-half",
        imagenet_resnet152,
        0.5,
    ),
    _imagenet("ResNet-152 on ImageNet", "imagenet-resnet152", imagenet_resnet152),
    published(
        "a transformer of 12 layers on WikiText-2",
        LANGUAGE,
        ("WikiText-2", "Python's documentation instead of WikiText-2"),
        wikitext2,
        lambda splits, training: word_language_model(
            splits.n_classes, as_published=training.as_published
        ),
        workload="wikitext2-transformer",
        epochs=20,
        batch_size=32,
        optimizer="adam",
        lr=1e-4,
        weight_decay=1e-5,
        clip=0.25,
        seed=1234,
    ),
    _vaihingen("UNet on Vaihingen", "vaihingen-unet", unet),
    _vaihingen("SegNet on Vaihingen", "vaihingen-segnet", segnet),
)
