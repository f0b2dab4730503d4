"""Choose and check the parameters of a model to record."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from trajstore.format.run_spec import SchemaError
from trajstore.tracking.placement import is_divided, local_part

WRAPPER: Final = re.compile(r"(_orig_mod|_checkpoint_wrapped_module)\.")
"""Parts of parameter names that `torch.compile` and activation checkpointing insert."""


def as_optimizers(optimizer: object) -> list[Optimizer]:
    """Return one or several optimizers as a list, after checking that they have hooks."""
    if optimizer is None:
        return []
    optimizers: list[Any] = [optimizer]
    if isinstance(optimizer, Iterable) and not isinstance(optimizer, Optimizer):
        optimizers = [*optimizer]
    for candidate in optimizers:
        _refuse_deepspeed(type(candidate).__module__, type(candidate).__name__)
    invalid = [o for o in optimizers if not isinstance(o, Optimizer)]
    if invalid or not optimizers:
        found = type(invalid[0]).__name__ if invalid else "no optimizer"
        raise TypeError(
            "`optimizer` must be a torch.optim.Optimizer or a sequence of them, got "
            f"{found}. Give the optimizer whose step() trains the model; or None, and put "
            "`with recorder.step():` around every update."
        )
    for candidate in optimizers:
        if not hasattr(candidate, "_optimizer_step_pre_hooks"):
            raise TypeError(
                f"{type(candidate).__name__} has no hooks, which the recorder needs: this "
                "optimizer calls another one. Give the recorder None instead, and put `with "
                "recorder.step():` around its step(); or, if it only passes calls on, give the "
                "inner optimizer, which may be `optimizer.optimizer`, as "
                "trajstore.integrations.accelerate does."
            )
    return optimizers


def _refuse_deepspeed(module: str, name: str) -> None:
    """Raise an error if a type belongs to DeepSpeed."""
    if module.partition(".")[0] == "deepspeed":
        raise NotImplementedError(
            f"{name} is a part of DeepSpeed, which divides or copies parameters in ways of its "
            "own that cannot be recorded: the stages 1, 2 and 3 of ZeRO, and its mixed "
            "precision. Divide the model with FSDP2 (torch.distributed.fsdp.fully_shard), whose "
            "shards are recorded; or, at stage 0 without mixed precision, give the recorder "
            "engine.module and the optimizer that was given to deepspeed.initialize."
        )


def trained_parameters(
    model: nn.Module | Mapping[str, Tensor], optimizers: Sequence[Optimizer]
) -> dict[str, Tensor]:
    """Return the model's parameters that optimizers hold, in the model's order."""
    # Names are as in the model before torch.compile, DistributedDataParallel, Lightning Fabric
    # or activation checkpointing wrapped it.
    named = named_tensors(model)
    if not named:
        raise ValueError("The model has no parameters; there is nothing to record.")
    groups = [group for o in optimizers for group in o.param_groups]
    held = {id(p) for group in groups for p in group["params"]}
    if not optimizers:
        is_module = isinstance(model, nn.Module)
        held = {id(p) for p in named.values() if p.requires_grad or not is_module}
    foreign = len(held - {id(p) for p in named.values()})
    if any(hasattr(p, "ds_id") for p in named.values()):
        # Stage 3 of ZeRO leaves the elements on other ranks.
        _refuse_deepspeed("deepspeed", "ZeRO, which has divided these parameters,")
    if foreign:
        _refuse_deepspeed(type(model).__module__, type(model).__name__)
        raise ValueError(
            f"{foreign} of the {len(held)} tensors that the optimizer holds are not "
            "parameters of the model. Give the recorder the model that contains all of "
            "these tensors, and make the optimizer after the model has its final form. If the "
            "optimizer holds copies, as in mixed precision, give a mapping from names to "
            "copies instead of the model."
        )
    parameters = {name: p for name, p in named.items() if id(p) in held}
    is_wrapper: Any = is_traceable_wrapper_subclass
    if wrapped := [
        name for name, p in parameters.items() if is_wrapper(p) and not is_divided(p)
    ]:
        raise NotImplementedError(
            f"{len(wrapped)} parameters, including {wrapped[0]!r}, are of the type "
            f"{type(parameters[wrapped[0]]).__name__}, which does not hold their elements "
            "itself. The recorder supports ordinary tensors, and DTensors such as FSDP2 makes."
        )
    devices = {p.device for p in parameters.values()}
    if len(devices) > 1:
        raise NotImplementedError(
            f"The parameters lie on {len(devices)} devices, {sorted(map(str, devices))}; "
            "the recorder needs them on one device."
        )
    if unmade := [name for name, p in parameters.items() if is_lazy(p) or p.is_meta]:
        raise ValueError(
            f"{len(unmade)} parameters, including {unmade[0]!r}, have no elements yet: they "
            "are lazy, or on the device 'meta'. Make the recorder after the model has its "
            "final form and is on the device where it is trained."
        )
    if complex_names := [name for name, p in parameters.items() if p.is_complex()]:
        raise NotImplementedError(
            f"Complex parameters cannot be recorded: {complex_names}. Store their real and "
            "imaginary parts as two parameters."
        )
    return parameters


def recorded_parameters(
    model: nn.Module | Mapping[str, Tensor],
    optimizers: Sequence[Optimizer],
    resume: Mapping[str, Any] | bool,
) -> tuple[dict[str, Tensor], str | None]:
    """Return the parameters to record, and a warning of others that the optimizers hold."""
    # A resumed recording follows the tensors that it has followed before, as an uninterrupted one
    # does: tensors may have been unfrozen or frozen since it began.
    held = trained_parameters(model, optimizers)
    groups = resume.get("groups") if isinstance(resume, Mapping) else None
    if not _is_groups(groups):
        return held, None  # no state, or one that is refused later
    before = {name for group in groups for name in group}
    named = named_tensors(model)
    if not before or not before <= named.keys():
        return held, None
    parameters = {name: p for name, p in named.items() if name in before}
    if not (new := held.keys() - before):
        return parameters, None
    return parameters, (
        f"{len(new)} tensors that the optimizer holds are not recorded, because the resumed "
        f"recording began without them: {sorted(new)}. Distances and products are those of the "
        "other tensors. To record all, make a recorder with a new path."
    )


def _is_groups(groups: object) -> TypeGuard[Sequence[Sequence[str]]]:
    return isinstance(groups, (list, tuple)) and all(
        isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names)
        for names in groups
    )


def named_tensors(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a model or mapping by name, each tensor once."""
    if isinstance(model, Mapping):
        _check_tensors(model)
        # A tensor under several names is recorded under its first name, as in a module.
        first = {id(p): name for name, p in reversed([*model.items()])}
        return {name: p for name, p in model.items() if first[id(p)] == name}
    if not isinstance(model, nn.Module):
        raise TypeError(
            "`model` must be a torch.nn.Module, or a mapping from name to parameter such as "
            f"dict(model.named_parameters()), got {type(model).__name__}."
        )
    *_, unwrapped = _layers(model)
    parameters = unwrapped.named_parameters()
    return {WRAPPER.sub("", name): p for name, p in parameters}


def _check_tensors(model: Mapping[str, object]) -> None:
    """Raise an error if values of a mapping are no tensors."""
    others = [name for name, value in model.items() if not isinstance(value, Tensor)]
    if not others:
        return
    kind = type(model[others[0]])
    advice = "Give the tensors that training updates."
    if isinstance(model[others[0]], np.ndarray):
        advice = (
            "torch.from_numpy(array) makes a tensor in the memory of an array, which shows every "
            "update of the array; put its gradient, also a tensor, in .grad before recorder.step()."
        )
    raise TypeError(
        f"{len(others)} of {len(model)} values of `model`, including {others[0]!r}, are no tensors "
        f"but {kind.__module__}.{kind.__qualname__}; expected a mapping from name to torch.Tensor. "
        f"{advice}"
    )


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a model and the models inside it that wrappers of whole models hold."""
    while True:
        yield model
        inner: Any = getattr(model, "_orig_mod", None)  # torch.compile
        if inner is None and isinstance(model, DistributedDataParallel):
            inner = model.module
        if inner is None and type(model).__name__ == "_FabricModule":
            inner = getattr(model, "_forward_module", None)  # Lightning Fabric
        if inner is None:
            return
        model = inner


def is_copy(model: object) -> bool:
    """Whether another rank of DistributedDataParallel records the same model."""
    return isinstance(model, nn.Module) and any(
        isinstance(layer, DistributedDataParallel)
        and dist.get_rank(layer.process_group) > 0
        for layer in _layers(model)
    )


def group_names(
    parameters: Mapping[str, Tensor], optimizers: Sequence[Optimizer]
) -> list[list[str]]:
    """Return the names of the parameters in each group of the optimizers."""
    names = {id(p): name for name, p in parameters.items()}
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return [
        [names[id(p)] for p in group["params"] if id(p) in names] for group in groups
    ]


def checksum(parameters: Iterable[Tensor]) -> npt.NDArray[np.float64]:
    """Return the norms of the parts of parameters on this rank, which waits for the device."""
    local = [local_part(p).detach().to_dense() for p in parameters]
    norms = [torch.linalg.vector_norm(p.double()) for p in local if p.numel() > 0]
    return torch.stack(norms).cpu().numpy() if norms else np.zeros(0)


def check_groups(state: Mapping[str, Any], groups: list[list[str]]) -> None:
    """Raise an error if parameter groups, as lists of names, differ from a state's groups."""
    if problems := group_differences(state["groups"], groups):
        raise SchemaError(
            ["The optimizer differs from the optimizer of the checkpoint:", *problems]
        )


def group_differences(before: list[list[str]], now: list[list[str]]) -> list[str]:
    """List the differences between a checkpoint's parameter groups and the current groups."""
    # Tensors that are held in one of the two only have been frozen or unfrozen.
    names = {n for group in before for n in group} & {n for group in now for n in group}
    before, now = ([[n for n in g if n in names] for g in gs] for gs in (before, now))
    before, now = [g for g in before if g], [g for g in now if g]
    problems = []
    if len(before) != len(now):
        problems.append(f"parameter groups: {len(now)}, recorded with {len(before)}")
    for i, (old, new) in enumerate(zip(before, now, strict=False)):
        if missing := sorted(set(old) - set(new)):
            problems.append(f"parameter group {i}: lacks {missing}")
        if added := sorted(set(new) - set(old)):
            problems.append(f"parameter group {i}: also has {added}")
    return problems
