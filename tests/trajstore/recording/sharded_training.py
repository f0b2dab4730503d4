"""Trains a little net in one process, or in several that share it; started by torchrun.

    sharded_training.py DIRECTORY N_STEPS KIND ...

A KIND is whole, ddp, fsdp, tensor, both or pipeline. Every rank sees the same batches, or
under ddp its part of them.
"""

import os
import sys
from contextlib import suppress
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from trajstore import Recorder

OPTIONS: dict[str, Any] = {
    "steps_per_epoch": 6,
    "sketch_bits": 4096,
    "probes": 256,
    "updates": True,
}
FEATURES = 37

if "WITH_WHAT_IS_REFUSED" in os.environ:
    OPTIONS |= {"exact": True, "offload": True}


def net() -> nn.Sequential:
    """Widths that ranks cannot divide evenly, and more than one block of elements."""
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Linear(FEATURES, 90),
        nn.Tanh(),
        nn.Linear(90, 50),
        nn.Tanh(),
        nn.Linear(50, 3),
    )


def batch(step: int) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(16, FEATURES, generator=generator)
    return inputs, inputs[:, :3].sin()


def divided(kind: str, model: nn.Sequential) -> Any:
    """Wrap or divide a model among all ranks."""
    n = dist.get_world_size()
    if kind == "ddp":
        return DistributedDataParallel(model)
    if kind == "fsdp":
        fully_shard(model[2])
        return fully_shard(model)
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    if kind == "tensor":
        return parallelize_module(model, init_device_mesh("cpu", (n,)), plan)
    mesh = init_device_mesh("cpu", (n // 2, 2), mesh_dim_names=("data", "tensor"))
    parallel = parallelize_module(model, mesh["tensor"], plan)
    return fully_shard(parallel, mesh=mesh["data"])


def main(directory: str, n_steps: int, kinds: list[str]) -> None:
    """Train and record, one kind after the other."""
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    for kind in kinds:
        path, model = f"{directory}/{kind}.zarr", net()
        if kind == "pipeline":
            train_pipeline(path, model, n_steps)
            continue
        trained = model if kind == "whole" else divided(kind, model)
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
        first, resume = 0, {}
        if "INTERRUPT_AT" in os.environ:
            first = int(os.environ["INTERRUPT_AT"])
            resume = interrupted(path, kind, trained, optimizer, first)
        with Recorder(path, trained, optimizer, **resume, **OPTIONS) as recorder:
            for step in range(first, n_steps):
                train_step(kind, trained, optimizer, recorder, step)
    if "RANK" in os.environ:
        dist.destroy_process_group()


def interrupted(
    path: str, kind: str, model: Any, optimizer: Any, n_steps: int
) -> dict[str, Any]:
    """Record some steps, fail, and return how to go on."""
    recorder = Recorder(path, model, optimizer, **OPTIONS)
    with suppress(KeyboardInterrupt), recorder:
        for step in range(n_steps):
            train_step(kind, model, optimizer, recorder, step)
        state = recorder.state_dict()
        raise KeyboardInterrupt
    return {"resume": state}


def train_step(kind: str, model: Any, optimizer: Any, recorder: Any, step: int) -> None:
    inputs, targets = batch(step)
    if kind == "ddp":
        rank, n = dist.get_rank(), dist.get_world_size()
        inputs, targets = inputs[rank::n], targets[rank::n]
    optimizer.zero_grad()
    loss = (model(inputs) - targets).square().mean()
    loss.backward()
    recorder.log(loss=loss.detach())
    if step == 4:
        recorder.snapshot("four")
        recorder.measure("again")
    if os.environ.get("DIE_AT") == f"{step} {os.environ.get('RANK')}":
        os._exit(9)
    optimizer.step()


def train_pipeline(path: str, model: nn.Sequential, n_steps: int) -> None:
    """Show each rank some layers only; gradients are computed on the whole, everywhere."""
    mine = ("0", "2", "4")[dist.get_rank() :: dist.get_world_size()]
    shown, others = {}, []
    for name, parameter in model.named_parameters():
        if name[0] in mine:
            shown[name] = parameter
        else:
            others.append(parameter)
    optimizer = torch.optim.SGD(shown.values(), lr=0.1, momentum=0.9)
    rest = torch.optim.SGD(others, lr=0.1, momentum=0.9)
    group = dist.group.WORLD
    with Recorder(path, shown, optimizer, group=group, **OPTIONS) as recorder:
        for step in range(n_steps):
            train_step("pipeline", model, optimizer, recorder, step)
            rest.step()
            rest.zero_grad()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
    # A thread of gloo that lets go of the last tensor while the interpreter ends aborts
    # the process.
    sys.stderr.flush()
    os._exit(0)
