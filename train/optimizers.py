"""Make the optimizer that the settings name."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from torch import nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer

from train.settings import Training
from trajstore.format.attrs import MOMENTUM
from trajstore.optim import NGN, NormalizedSGD, SPSmax


def make_optimizer(model: nn.Module, training: Training) -> Optimizer:
    """Return the optimizer of a model; the weight decay is set before every step."""
    if training.optimizer in FROM_LIBRARY:
        return FROM_LIBRARY[training.optimizer](_library(), model, training.lr)
    return FROM_TORCH[training.optimizer](
        model.parameters(), lr=training.lr, **_betas(training)
    )


def _betas(training: Training) -> dict[str, Any]:
    """Return the coefficients of moments that the settings choose."""
    if training.beta1 is None and training.beta2 is None:
        return {}
    beta1, beta2 = training.beta1, training.beta2
    return {
        "betas": (0.9 if beta1 is None else beta1, 0.999 if beta2 is None else beta2)
    }


def _muon(library: Any, model: nn.Module, lr: float) -> Optimizer:
    """Return Muon for hidden matrices, and AdamW for all other parameters."""
    # Embeddings and the last matrix are left to AdamW, as K. Jordan recommends, and steps have
    # the size of J. Liu et al., "Muon is Scalable for LLM Training", 2025, arXiv 2502.16982,
    # so that both kinds of parameters share one learning rate.
    matrices = [
        p
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for p in module.parameters(recurse=False)
        if p.ndim >= 2
    ]
    hidden = {id(p): p for p in matrices[:-1]}
    others = [p for p in model.parameters() if id(p) not in hidden]
    groups = [
        {"params": list(hidden.values()), "use_muon": True},
        {"params": others, "use_muon": False},
    ]
    return library.Muon(  # type: ignore[no-any-return]
        [group for group in groups if group["params"]],
        lr=lr,
        adamw_lr=lr,
        use_adjusted_lr=True,
    )


def _plain(name: str, **options: Any) -> Callable[[Any, nn.Module, float], Optimizer]:
    """Return what makes an optimizer of the library with one group of parameters."""

    def make(library: Any, model: nn.Module, lr: float) -> Optimizer:
        made: Optimizer = getattr(library, name)(model.parameters(), lr=lr, **options)
        return made

    return make


FROM_TORCH: Final[Mapping[str, Callable[..., Optimizer]]] = {
    "sgd": SGD,
    "momentum": partial(SGD, momentum=MOMENTUM),
    "adam": Adam,
    "adamw": AdamW,
    "nadamw": partial(NAdam, decoupled_weight_decay=True),
    "nsgd": NormalizedSGD,
    "spsmax": SPSmax,
    "ngn": NGN,
}

FROM_LIBRARY: Final[Mapping[str, Callable[[Any, nn.Module, float], Optimizer]]] = {
    "sign-sgd": _plain("SignSGD", momentum=0.0),
    "lion": _plain("Lion"),
    "muon": _muon,
    "soap": _plain("SOAP"),
}


def _library() -> Any:
    """Import ``pytorch_optimizer`` late: the import takes seconds, and it is optional."""
    try:
        import pytorch_optimizer  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"The optimizers {', '.join(FROM_LIBRARY)} are those of pytorch-optimizer, which "
            'is not installed. Run\npip install "trajstore[optimizers]"'
        ) from error
    return pytorch_optimizer
