"""Compare the recorder's hooks for shards with its hooks for whole tensors of as many elements.

Ranks of one machine take steps of plain SGD with constant gradients. In turns, each rank records
tensors of its own in a store of its own, and all ranks record tensors that they share. A rank holds
as many elements in both cases, so that the difference is the work for shards and communication.
"""

import json
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from saving import RESULTS, save_results
from stopwatch import timed_recorder
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

WIDTH = 1024
"""Number of columns of a rank's matrices, of which a net has several."""

DIVISIONS = {"rows": 0, "columns": 1}
"""Dimension along which matrices are divided, by the name of the division."""


KINDS = ("shards", "whole")


def model_of(tensors: list[Any]) -> nn.ParameterList:
    """Return parameters with constant gradients."""
    model = nn.ParameterList([nn.Parameter(tensor) for tensor in tensors])
    for parameter, tensor in zip(model.parameters(), tensors, strict=True):
        parameter.grad = tensor.detach().clone()
    return model


def of_rank(n_elements: int, n_tensors: int, dimension: int) -> nn.ParameterList:
    """Return the tensors that all ranks share, of which a rank holds this many elements."""
    n_ranks = dist.get_world_size()
    shape = [max(1, n_elements // n_tensors // WIDTH), WIDTH]
    shape[dimension] *= n_ranks
    mesh = init_device_mesh("cpu", (n_ranks,))
    generator = torch.Generator().manual_seed(1)
    whole = [torch.randn(shape, generator=generator) for _ in range(n_tensors)]
    return model_of([distribute_tensor(w, mesh, [Shard(dimension)]) for w in whole])


def measure_rank(
    rank: int, n_ranks: int, sizes: list[int], n_tensors: int, turns: int, folder: str
) -> None:
    """Measure on one rank; the first rank writes the results to the folder."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", meeting, rank=rank, world_size=n_ranks)
    results = []
    for n_elements in sizes:
        for division, dimension in DIVISIONS.items():
            hooks = measure(Path(folder), rank, n_elements, n_tensors, dimension, turns)
            row = {
                "elements": n_elements,
                "tensors": n_tensors,
                "ranks": n_ranks,
                "division": division,
            }
            for name, percent in (("", 50), (", tenth percentile", 10)):
                share, whole = (np.percentile(hooks[k], percent) for k in KINDS)
                row[f"shards{name}"], row[f"whole{name}"] = 1e6 * share, 1e6 * whole
                row[f"ratio{name}"] = share / whole
            rows: list[Any] = [None] * n_ranks
            dist.all_gather_object(rows, row)
            # The slowest rank counts.
            results.append(max(rows, key=lambda row: row["ratio"]))
    if rank == 0:
        save_results(results, Path(folder) / "results.json")
    dist.barrier()
    # A thread of gloo that frees the last tensor while the interpreter ends would abort.
    os._exit(0)


def measure(
    folder: Path, rank: int, n_elements: int, n_tensors: int, dimension: int, turns: int
) -> dict[str, Any]:
    """Return the seconds of hooks in each step, by kind of tensors."""
    rows = max(1, n_elements // n_tensors // WIDTH)
    own = model_of([torch.randn(rows, WIDTH) for _ in range(n_tensors)])
    models = {"whole": own, "shards": of_rank(n_elements, n_tensors, dimension)}
    steps = max(2, min(50, 10**7 // n_elements))
    with ExitStack() as stack:
        timed, optimizers = {}, {}
        for kind, model in models.items():
            name = f"{n_elements}-{dimension}-{kind}"
            path = folder / (name if kind == "shards" else f"{name}-{rank}")
            optimizers[kind] = torch.optim.SGD(model.parameters(), lr=1e-6)
            timed[kind] = stack.enter_context(
                timed_recorder(path, model, optimizers[kind], steps_per_epoch=10**9)
            )
        for turn in range(1 + turns):
            for kind, optimizer in optimizers.items():
                for _ in range(steps):
                    # Sharded models add up their gradients over the ranks before a step.
                    dist.barrier()
                    optimizer.step()
                if turn == 0:
                    # The first window is written before the steps that count.
                    timed[kind].recorder.flush()
        return {
            kind: np.add(t.before.seconds, t.after.seconds)[steps + 1 :]
            for kind, t in timed.items()
        }


def main(
    *,
    elements: tuple[int, ...] = (10**5, 10**6, 10**7),
    tensors: int = 10,
    ranks: int = 2,
    turns: int = 10,
    out: Path = RESULTS / "sharded.json",
) -> None:
    """Measure, print and save the results.

    Parameters
    ----------
    elements : tuple of int, default: (100000, 1000000, 10000000)
        Numbers of elements on each rank.
    tensors : int, default: 10
        Number of tensors.
    ranks : int, default: 2
        Number of processes, each with one thread.
    turns : int, default: 10
        Number of turns.
    out : Path
        JSON file to write.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = ranks, [*elements], tensors, turns, folder
        multiprocessing.spawn(measure_rank, arguments, nprocs=ranks)
        out.write_bytes((Path(folder) / "results.json").read_bytes())
    title = "Microseconds of hooks per step, with as many elements on each rank"
    columns = ("elements", "division", "shards", "whole", "ratio", "tenth percentile")
    table = Table(*columns, box=None, title=title)
    for row in json.loads(out.read_text()):
        figures = (f"{row[name]:,.0f}" for name in ("shards", "whole"))
        ratios = (f"{row[f'ratio{name}']:.2f}" for name in ("", ", tenth percentile"))
        table.add_row(f"{row['elements']:,}", row["division"], *figures, *ratios)
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
