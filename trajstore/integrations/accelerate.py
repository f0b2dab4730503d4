"""Record a loop that uses Accelerate."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim import Optimizer

from trajstore.integrations.participation import takes_part
from trajstore.recording.recorder import Recorder, no_op_recorder


@contextmanager
def record(
    path: str | Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    **options: Any,
) -> Iterator[Recorder]:
    """Record every step of an optimizer while a loop runs; for a ``with`` statement.

    Parameters
    ----------
    path : str or os.PathLike
        Of the store, as `trajstore.Recorder` takes it.
    accelerator : accelerate.Accelerator
        Its main process records; where parameters are divided, as under FSDP2, all do.
    model : torch.nn.Module
        As ``accelerator.prepare`` returned it. Parameters have the names that they have
        in the model that was given to that.
    optimizer : torch.optim.Optimizer or sequence of torch.optim.Optimizer
        As ``accelerator.prepare`` returned them. While gradients are accumulated their
        ``step`` does nothing, and is not recorded.
    **options : Any
        What else `trajstore.Recorder` takes. `steps_per_epoch` counts optimizer steps:
        where gradients are accumulated over n batches, it is
        ``ceil(len(loader) / n)``, with the prepared loader.

    Yields
    ------
    Recorder
        In processes that do not record, one that does nothing; its `state_dict` is empty.

    Examples
    --------
    >>> import torch
    >>> accelerator = Accelerator(cpu=True)
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> model, optimizer = accelerator.prepare(model, optimizer)
    >>> path = tmp_path / "run.zarr"
    >>> with record(path, accelerator, model, optimizer) as recorder:
    ...     loss = model(torch.ones(1, 3)).square().mean()
    ...     accelerator.backward(loss)
    ...     recorder.log(loss=loss)
    ...     optimizer.step()
    """
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else optimizer
    inner = [inner_optimizer(o) for o in optimizers]
    if not takes_part(inner, is_main=accelerator.is_main_process):
        yield no_op_recorder()
        return
    with Recorder(path, accelerator.unwrap_model(model), inner, **options) as recorder:
        yield recorder


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that Accelerate has wrapped, or the same if it has not.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Perhaps an ``AcceleratedOptimizer``, whose own hooks are never called.

    Returns
    -------
    torch.optim.Optimizer
        The one that updates the parameters.
    """
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer
