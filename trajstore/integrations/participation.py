"""Which processes of a distributed training record."""

from collections.abc import Sequence

from torch.optim import Optimizer

from trajstore.tracking.placement import is_divided


def takes_part(optimizers: Sequence[Optimizer], *, is_main: bool) -> bool:
    """Tell whether this process records.

    Where every process holds the same parameters, one is enough. Of parameters that
    are divided, DTensors as under FSDP2, each holds a part.

    Parameters
    ----------
    optimizers : sequence of torch.optim.Optimizer
        Those that are recorded.
    is_main : bool
        Whether this is the first of the processes.

    Returns
    -------
    bool
        True in the main process; in others, if parameters are divided.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return is_main or any(is_divided(p) for group in groups for p in group["params"])
