"""Decide which processes of a distributed training run record it."""

from collections.abc import Sequence

from torch.optim import Optimizer

from trajstore.tracking.placement import is_divided


def takes_part(optimizers: Sequence[Optimizer], *, is_main: bool) -> bool:
    """Whether this process records; without sharded parameters, only the main process does."""
    # If processes hold copies of the parameters, one process is enough. If parameters are
    # DTensors, as under FSDP2, each process holds and records a part of them.
    return is_main or any_divided(optimizers)


def any_divided(optimizers: Sequence[Optimizer]) -> bool:
    """Whether any parameter is sharded."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return any(is_divided(p) for group in groups for p in group["params"])
