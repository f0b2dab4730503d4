"""Tell calls of `step` that train nothing from steps."""

from torch import Tensor
from torch.optim import Optimizer


def is_idle(optimizer: Optimizer) -> bool:
    """Whether a step changes nothing: there are no gradients, or only zeros at the rate 0."""
    # Functions that return or load the state of an optimizer take such a step to make the state.
    # Loops, because in most steps the first rate and the first gradient tell.
    groups = optimizer.param_groups
    for group in groups:
        rate = group.get("lr")
        if (type(rate) is float and rate) or not _is_zero(rate):
            break
    else:
        gradients = [p.grad for group in groups for p in group["params"]]
        return not any(g.count_nonzero() for g in gradients if g is not None)
    for group in groups:
        for p in group["params"]:
            if p.grad is not None:
                return False
    return True


def _is_zero(rate: object) -> bool:
    """Whether a learning rate is 0; a rate on an accelerator is not waited for."""
    if isinstance(rate, Tensor):
        return rate.is_cpu and rate.numel() == 1 and bool(rate == 0)
    return rate == 0
