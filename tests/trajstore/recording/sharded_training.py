"""Train a small network in one process, or in several processes that share it.

A KIND is whole, ddp, fsdp, tensor, both or pipeline; or, under fsdp with two ranks, one of
joined (without `updates`, and with a write queue of three rows), resumed-at-STEP, refused,
dying and dying-joined. The kind saved-at-STEP ends with a checkpoint of `torch.distributed.checkpoint`, from which the
kind loaded-at-STEP-from-JOB continues, under fsdp with any number of ranks. Every rank sees the same batches, or under ddp its part of them. Files next to the stores hold the exit codes and the errors of the ranks.
"""

import json
import os
import sys
import traceback
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from trajstore import Recorder
from trajstore.integrations.checkpoint import RecorderState

OPTIONS: dict[str, Any] = {
    "steps_per_epoch": 12,
    "sketch_bits": 4096,
    "probes": 256,
    "updates": True,
}
FEATURES = 37

JOBS: dict[str, tuple[int, list[str]]] = {
    "one": (1, ["whole"]),
    "two": (
        2,
        [
            *("ddp", "fsdp", "tensor", "pipeline", "joined"),
            *("resumed-at-9", "resumed-at-12", "refused", "saved-at-15"),
        ],
    ),
    "four": (4, ["fsdp", "both", "loaded-at-15-from-two", "saved-at-15"]),
    "less": (2, ["loaded-at-15-from-four"]),
    "dying": (2, ["dying"]),
    "dying-joined": (2, ["dying-joined"]),
}
"""Number of ranks of each job, and the kinds that the ranks train one after the other."""


def net() -> nn.Sequential:
    """Return a network with indivisible widths and more than one block of elements."""
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
    if kind not in {"tensor", "both"}:
        fully_shard(model[2])
        return fully_shard(model)
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    if kind == "tensor":
        return parallelize_module(model, init_device_mesh("cpu", (n,)), plan)
    mesh = init_device_mesh("cpu", (n // 2, 2), mesh_dim_names=("data", "tensor"))
    parallel = parallelize_module(model, mesh["tensor"], plan)
    return fully_shard(parallel, mesh=mesh["data"])


def main(directory: Path, n_steps: int) -> None:
    """Run every job in forks of this process, which share its imported modules."""
    codes = {}
    for name, (n_ranks, kinds) in JOBS.items():
        (directory / name).mkdir()
        children = [
            start(directory / name, r, n_ranks, kinds, n_steps) for r in range(n_ranks)
        ]
        ends = [os.waitpid(child, 0)[1] for child in children]
        codes[name] = [os.waitstatus_to_exitcode(end) for end in ends]
    (directory / "codes.json").write_text(json.dumps(codes))


def start(
    directory: Path, rank: int, n_ranks: int, kinds: list[str], n_steps: int
) -> int:
    """Fork the process of a rank, and return its process number."""
    if child := os.fork():
        return child
    errors = os.open(directory / f"errors-{rank}", os.O_CREAT | os.O_WRONLY)
    os.dup2(errors, 2)
    code = 1
    try:
        if n_ranks > 1:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{directory}/meeting",
                rank=rank,
                world_size=n_ranks,
                timeout=timedelta(seconds=60),
            )
        for kind in kinds:
            train(directory / f"{kind}.zarr", kind, n_steps)
        code = 0
    except BaseException:  # noqa: BLE001 - the process ends here
        traceback.print_exc()
    # A thread of gloo that frees the last tensor while the interpreter ends aborts the
    # process.
    sys.stderr.flush()
    os._exit(code)


def train(path: Path, kind: str, n_steps: int) -> None:
    """Train and record the model that is divided in one way."""
    torch.set_num_threads(1)
    model = net()
    if kind == "pipeline":
        train_pipeline(path, model, n_steps)
        return
    trained = model if kind == "whole" else divided(kind, model)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
    if kind == "refused":
        try:
            Recorder(path, trained, optimizer, exact=True, offload=True, **OPTIONS)
        except NotImplementedError as error:
            path.with_suffix(".txt").write_text(str(error))
        return
    first, resume = 0, {}
    parts = kind.split("-")
    if parts[0] == "resumed":
        first = int(parts[2])
        resume = {"resume": interrupted(path, kind, trained, optimizer, first)}
    if parts[0] == "saved":
        interrupted(path, kind, trained, optimizer, int(parts[2]))
        return
    if parts[0] == "loaded":
        first, path = int(parts[2]), path.parents[1] / parts[4] / "saved-at-15.zarr"
        resume = {"resume": loaded(path, trained, optimizer)}
    options = OPTIONS
    if kind.endswith("joined"):
        # The update of a step is measured together with the next row.
        options = {**OPTIONS, "updates": False, "flush_rows": 3}
    with Recorder(path, trained, optimizer, **resume, **options) as recorder:
        for step in range(first, n_steps):
            train_step(kind, trained, optimizer, recorder, step)


def interrupted(path: Path, kind: str, model: Any, optimizer: Any, n_steps: int) -> Any:
    """Record steps until a failure; return the recorder's state, or save it in a checkpoint."""
    state: dict[str, Any] = {}
    recorder = Recorder(path, model, optimizer, **OPTIONS)
    with suppress(KeyboardInterrupt), recorder:
        for step in range(n_steps):
            train_step(kind, model, optimizer, recorder, step)
        if kind.startswith("saved"):
            save_all(path, model, optimizer, recorder)
        else:
            state = recorder.state_dict()
        raise KeyboardInterrupt
    return state


def save_all(path: Path, model: Any, optimizer: Any, recorder: Any) -> None:
    """Save a checkpoint next to a store."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    saved = {
        "recorder": RecorderState(recorder),
        "model": model_state,
        "optim": optimizer_state,
    }
    save(saved, checkpoint_id=path.with_suffix(".checkpoint"))


def loaded(path: Path, model: Any, optimizer: Any) -> Any:
    """Load the checkpoint next to a store, and return the recorder's state."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    holder = RecorderState()
    saved = {"recorder": holder, "model": model_state, "optim": optimizer_state}
    load(saved, checkpoint_id=path.with_suffix(".checkpoint"))
    set_state_dict(
        model,
        optimizer,
        model_state_dict=model_state,
        optim_state_dict=optimizer_state,
    )
    return holder.resume


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
    if kind.startswith("dying") and step == 13 and dist.get_rank() == 1:
        os._exit(9)
    optimizer.step()


def train_pipeline(path: Path, model: nn.Sequential, n_steps: int) -> None:
    """Give each rank's recorder a few layers; every rank computes all gradients."""
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
