"""Record a training loop that uses Accelerate."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim import Optimizer

from trajstore.integrations.attempts import default_on_error, warn_of
from trajstore.integrations.participation import takes_part
from trajstore.recording.options import RecorderKeywords
from trajstore.recording.recorder import Recorder, no_op_recorder


@contextmanager
def record(
    path: str | Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    **options: Unpack[RecorderKeywords],
) -> Iterator[Recorder]:
    """Record every step of an optimizer in a ``with`` block.

    Parameters
    ----------
    path : str or os.PathLike
        Path of the store, see `trajstore.Recorder`.
    accelerator : accelerate.Accelerator
        The accelerator of the training loop. Its main process records; with sharded parameters,
        as under FSDP2, all processes record.
    model : torch.nn.Module
        The model that ``accelerator.prepare`` returned. Parameters keep the names that they
        have in the original model.
    optimizer : torch.optim.Optimizer or sequence of torch.optim.Optimizer
        The optimizers that ``accelerator.prepare`` returned. Calls of ``step`` that only
        accumulate gradients do nothing, and are not recorded.
    **options : Any
        Other options of `trajstore.Recorder`. `steps_per_epoch` counts optimizer steps:
        ``ceil(len(loader) / n)`` if gradients are accumulated over n batches of the prepared
        loader. The default of `on_error` is ``"warn"``: an error of the recording ends the
        recording, and training continues. Sharded recordings raise errors.

    Yields
    ------
    Recorder
        The recorder. In processes that do not record, and if the recording cannot begin, it does
        nothing, and its `state_dict` is empty.

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
    tolerant = default_on_error(options, inner)
    try:
        recorder = Recorder(path, accelerator.unwrap_model(model), inner, **tolerant)
    except Exception as error:
        if tolerant["on_error"] == "raise":
            raise
        warn_of(error)
        recorder = no_op_recorder()
    with recorder:
        yield recorder


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that Accelerate has wrapped; the wrapper never calls its own hooks."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer
