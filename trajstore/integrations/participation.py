"""Decide which processes of a distributed training run record."""

from collections.abc import Sequence

from torch.optim import Optimizer

from trajstore.tracking.placement import is_divided


def takes_part(optimizers: Sequence[Optimizer], *, is_main: bool) -> bool:
    """Whether this process records: the first, or all of those that share parameters."""
    # Copies of the parameters need one recorder; of DTensors, as under FSDP2, each process
    # holds a part.
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return is_main or any(is_divided(p) for group in groups for p in group["params"])
