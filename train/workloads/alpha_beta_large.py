"""The large workloads of the alpha-beta paper.

R. Islamov, N. Ajroldi, A. Orvieto, A. Lucchi, "Loss Landscape Characterization of Neural
Networks without Over-Parametrization", NeurIPS 2024, arXiv 2410.12455. The paper gives data,
models, batch sizes, learning rates, coefficients of moments, weight decay, the share of steps
for the warmup, the smallest learning rate, and the tokens that Pythia sees. Three seeds.

Four workloads are those of the AlgoPerf benchmark (G. Dahl et al., "Benchmarking Neural Network
Training Algorithms", 2023, arXiv 2306.07179), from which models and losses are taken. The text
that we read gives no number of steps for these; the numbers of epochs here cover the
benchmark's own hints: 10,666 steps on Criteo, 18,094 on fastMRI, 52,000 on ogbg-molpcba and
120,000 on WMT. NAdamW is `torch.optim.NAdam` with decoupled weight decay, whose momentum has a
schedule of its own. Seeds and the validation data of SlimPajama (none) are our own choices.
"""

from typing import Any, Final

from torch import Tensor
from torch.nn import functional as F

from train.data.large.criteo import criteo
from train.data.large.fastmri import fastmri
from train.data.large.ogbg import ogbg
from train.data.large.slimpajama import slimpajama
from train.data.large.wmt import wmt
from train.models import gpt_neox
from train.models.dlrm import dlrm_small
from train.models.fastmri_unet import fastmri_unet
from train.models.graph_network import graph_network
from train.models.translation_transformer import PADDING, translation_transformer
from train.workloads.definition import Workload, by_name, published
from train.workloads.tasks import LANGUAGE, minimization

LABEL_SMOOTHING: Final = 0.1


def click_loss(logits: Tensor, clicks: Tensor) -> Tensor:
    """Return the mean logistic loss of clicks."""
    return F.binary_cross_entropy_with_logits(logits, clicks)


def measured_property_loss(logits: Tensor, properties: Tensor) -> Tensor:
    """Return the mean logistic loss of the properties that are not NaN."""
    is_measured = ~properties.isnan()
    return F.binary_cross_entropy_with_logits(
        logits[is_measured], properties[is_measured]
    )


def translation_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of tokens before the end of a sentence, smoothed."""
    return F.cross_entropy(
        logits.flatten(0, 1),
        targets.flatten(),
        ignore_index=PADDING,
        label_smoothing=LABEL_SMOOTHING,
    )


def _nadamw(
    summary: str,
    loss: Any,
    notes: tuple[str, str],
    load: Any,
    model: Any,
    *,
    betas: tuple[float, float],
    **settings: Any,
) -> Workload:
    """Define a workload of AlgoPerf, with the paper's schedule."""
    return published(
        summary,
        minimization(loss),
        notes,
        load,
        lambda *_: model(),
        optimizer="nadamw",
        beta1=betas[0],
        beta2=betas[1],
        schedule="cosine",
        final_lr=1e-10,
        **settings,
    )


def _pythia(size: str, n_tokens: int, lr: float) -> Workload:
    return published(
        f"Pythia-{size.upper()} on SlimPajama",
        LANGUAGE,
        ("SlimPajama", "bytes of Python's documentation instead of SlimPajama"),
        lambda data, directory: slimpajama(
            data, directory, context=gpt_neox.CONTEXT, n_tokens=n_tokens
        ),
        lambda *_: gpt_neox.pythia(size),
        workload=f"pythia-{size}",
        epochs=1,
        batch_size=256,
        optimizer="adamw",
        lr=lr,
        beta1=0.9,
        beta2=0.95,
        weight_decay=0.1,
        schedule="cosine",
        warmup_fraction=0.1,
    )


ALPHA_BETA_LARGE: Final = by_name(
    _nadamw(
        "DLRM-small on Criteo's click logs",
        click_loss,
        ("Criteo 1TB", "digits instead of Criteo 1TB"),
        criteo,
        dlrm_small,
        betas=(0.93, 0.995),
        workload="criteo-dlrm",
        epochs=1,
        batch_size=262_144,
        lr=0.0017,
        weight_decay=0.08,
        warmup_fraction=0.02,
    ),
    _nadamw(
        "U-Net on fastMRI",
        F.l1_loss,
        ("fastMRI", "enlarged digits instead of fastMRI"),
        fastmri,
        fastmri_unet,
        betas=(0.9, 0.998),
        workload="fastmri-unet",
        epochs=17,
        batch_size=32,
        lr=0.001,
        weight_decay=0.15,
        warmup_fraction=0.1,
    ),
    _nadamw(
        "a graph network on ogbg-molpcba",
        measured_property_loss,
        ("ogbg-molpcba", "graphs of digits instead of ogbg-molpcba"),
        ogbg,
        graph_network,
        betas=(0.93, 0.995),
        workload="ogbg-gnn",
        epochs=77,
        batch_size=512,
        lr=0.0017,
        weight_decay=0.08,
        warmup_fraction=0.02,
    ),
    _nadamw(
        "a transformer on WMT, German to English",
        translation_loss,
        ("WMT 2017", "lines of Python's documentation instead of WMT 2017"),
        wmt,
        translation_transformer,
        betas=(0.97, 0.999),
        workload="wmt-transformer",
        epochs=3,
        batch_size=128,
        lr=0.001,
        weight_decay=0.15,
        warmup_fraction=0.1,
    ),
    _pythia("70m", 1_250_000_000, 0.01),
    _pythia("160m", 2_500_000_000, 0.006),
)
