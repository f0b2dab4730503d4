"""Which parameters of a model are recorded."""

from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def trained_parameters(
    model: nn.Module, optimizer: Optimizer
) -> dict[str, nn.Parameter]:
    """Return the model's parameters that the optimizer holds, by name.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    optimizer : torch.optim.Optimizer
        Its optimizer.

    Returns
    -------
    dict from str to torch.nn.Parameter
        In the order of ``named_parameters()``.

    Raises
    ------
    ValueError
        If there are none, or the optimizer holds others.
    NotImplementedError
        If they are of a kind that is not recorded.
    """
    named = dict(model.named_parameters())
    if not named:
        raise ValueError("The model has no parameters; there is nothing to record.")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    foreign = len(held - {id(p) for p in named.values()})
    if foreign:
        raise ValueError(
            f"{foreign} of the {len(held)} tensors that the optimizer holds are not "
            "parameters of the model. Give the recorder the model that contains all of "
            "them, and make the optimizer after the model has its final form."
        )
    parameters = {name: p for name, p in named.items() if id(p) in held}
    is_wrapper: Any = is_traceable_wrapper_subclass
    if wrapped := [name for name, p in parameters.items() if is_wrapper(p)]:
        raise NotImplementedError(
            f"{len(wrapped)} parameters, {wrapped[0]!r} among them, are of the kind "
            f"{type(parameters[wrapped[0]]).__name__}, whose elements lie elsewhere. "
            "Sharded parameters are not recorded: record an unsharded model."
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


def group_names(
    parameters: dict[str, nn.Parameter], optimizer: Optimizer
) -> list[list[str]]:
    """Return the names of the parameters in each of an optimizer's groups."""
    names = {id(p): name for name, p in parameters.items()}
    return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
