"""Which parameters of a model are recorded."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS, Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from trajstore.placement import is_divided

WRAPPER: Final = re.compile(r"(_orig_mod|_checkpoint_wrapped_module)\.")
"""What wrappers of modules add to names: `torch.compile`, and activation checkpoints."""


def trained_parameters(
    model: nn.Module | Mapping[str, Tensor], optimizers: Sequence[Optimizer]
) -> dict[str, Tensor]:
    """Return the model's parameters that optimizers hold, by name.

    Parameters
    ----------
    model : torch.nn.Module or mapping from str to torch.Tensor
        The model, or its parameters by name. What `torch.compile`,
        DistributedDataParallel and activation checkpoints add to names is left out.
    optimizers : sequence of torch.optim.Optimizer
        Its optimizers.

    Returns
    -------
    dict from str to torch.Tensor
        In the order of ``named_parameters()``.

    Raises
    ------
    ValueError
        If there are none, or an optimizer holds others.
    NotImplementedError
        If they are of a kind that is not recorded, or an optimizer cannot be followed.
    """
    if any(isinstance(optimizer, LBFGS) for optimizer in optimizers):
        raise NotImplementedError(
            "LBFGS takes many steps, with gradients of its own, within one call of step(): "
            "there is no gradient of the step to record. Take an optimizer that evaluates "
            "the gradient once a step, such as SGD or Adam."
        )
    named = _named(model)
    if not named:
        raise ValueError("The model has no parameters; there is nothing to record.")
    groups = [group for o in optimizers for group in o.param_groups]
    held = {id(p) for group in groups for p in group["params"]}
    foreign = len(held - {id(p) for p in named.values()})
    if foreign:
        raise ValueError(
            f"{foreign} of the {len(held)} tensors that the optimizer holds are not "
            "parameters of the model. Give the recorder the model that contains all of "
            "them, and make the optimizer after the model has its final form; where it "
            "holds copies, as in mixed precision, give a mapping from name to copy in the "
            "place of the model."
        )
    parameters = {name: p for name, p in named.items() if id(p) in held}
    is_wrapper: Any = is_traceable_wrapper_subclass
    if wrapped := [
        name for name, p in parameters.items() if is_wrapper(p) and not is_divided(p)
    ]:
        raise NotImplementedError(
            f"{len(wrapped)} parameters, {wrapped[0]!r} among them, are of the kind "
            f"{type(parameters[wrapped[0]]).__name__}, whose elements lie elsewhere. "
            "Ordinary tensors and DTensors, as FSDP2 makes them, can be recorded."
        )
    devices = {p.device for p in parameters.values()}
    if len(devices) > 1:
        raise NotImplementedError(
            f"The parameters lie on {len(devices)} devices, {sorted(map(str, devices))}; "
            "the recorder needs them on one."
        )
    if complex_names := [name for name, p in parameters.items() if p.is_complex()]:
        raise NotImplementedError(
            f"Complex parameters are not recorded: {complex_names}. Store their real and "
            "imaginary parts as two parameters."
        )
    return parameters


def _named(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(model, Mapping):
        return dict(model)
    parameters = _unwrapped(model).named_parameters()
    return {WRAPPER.sub("", name): p for name, p in parameters}


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel, and inside of what is around."""
    compiled: Any = getattr(model, "_orig_mod", None)
    if compiled is not None:
        return _unwrapped(compiled)
    if isinstance(model, DistributedDataParallel):
        return _unwrapped(model.module)
    return model


def is_copy(model: object) -> bool:
    """Whether another rank has the same model, under DistributedDataParallel, and records."""
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, DistributedDataParallel):
        return False
    return dist.get_rank(model.process_group) > 0


def group_names(
    parameters: Mapping[str, Tensor], optimizers: Sequence[Optimizer]
) -> list[list[str]]:
    """Return the names of the parameters in each of the optimizers' groups."""
    names = {id(p): name for name, p in parameters.items()}
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return [[names[id(p)] for p in group["params"]] for group in groups]
