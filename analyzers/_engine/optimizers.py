"""Name the optimizer of a run, and find out whether its updates are parallel to gradients."""

from typing import Final

from trajstore.format.shown import shown
from trajstore.reading.run import Run

OPTIMIZER: Final = "optimizer"
"""Attribute of a geometry: the optimizer of the run, as `optimizer_text` writes it."""

PLAIN: Final = (
    "torch.optim.sgd.SGD",
    "trajstore.optim.ngn.NGN",
    "trajstore.optim.normalized_sgd.NormalizedSGD",
    "trajstore.optim.sps_max.SPSmax",
)
"""Optimizers whose updates are parallel to gradients, if they have no momentum."""

MAX_GROUPS: Final = 8
"""Largest number of parameter groups with other settings that a text names."""


def optimizer_text(run: Run) -> str:
    """Return classes and first settings of the parameter groups; empty if they are not known."""
    texts = []
    for group in run.stored.document.optimizer:
        settings = dict(group.settings[0][1]) if group.settings else {}
        known = ", ".join(f"{k}={v}" for k, v in sorted(settings.items()) if v)
        text = f"{group.optimizer}({known})"
        if group.tensors and text not in texts:
            texts.append(text)
    more = "" if len(texts) <= MAX_GROUPS else f" and {len(texts) - MAX_GROUPS} more"
    return shown(", ".join(sorted(texts)[:MAX_GROUPS]) + more)


def optimizer_classes(run: Run) -> str:
    """Return the classes of the run's optimizers; empty if they are not known."""
    groups = run.stored.document.optimizer
    names = sorted({group.optimizer for group in groups if group.tensors})
    return shown(" and ".join(names))


def has_other_updates(run: Run) -> bool:
    """Whether the store says that updates are not parallel to gradients, as with momentum."""
    return any(
        group.optimizer not in PLAIN
        or any(settings.get("momentum") for _, settings in group.settings)
        for group in run.stored.document.optimizer
        if group.tensors
    )
