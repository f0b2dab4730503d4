"""Which processes of a distributed training record."""

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def takes_part(optimizers: Sequence[Optimizer], *, is_main: bool) -> bool:
    """Tell whether this process records.

    Where every process holds the same parameters, one is enough. Of sharded parameters
    each holds a part.

    Parameters
    ----------
    optimizers : sequence of torch.optim.Optimizer
        Those that are recorded.
    is_main : bool
        Whether this is the first of the processes.

    Returns
    -------
    bool
        True in the main process; in others, if parameters are sharded.
    """
    is_wrapper: Any = is_traceable_wrapper_subclass
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return is_main or any(is_wrapper(p) for group in groups for p in group["params"])
