"""Measure what the hooks of a recorder take in every step, beside a read of its bytes.

Plain SGD with gradients that stay the same, so that only steps and hooks are left. The floor
is one sum over as many float32 numbers as have to be read: gradient, iterate and basis.
Steps and sums take turns, in one process and with the same number of threads, and medians
are shown. Takes some five minutes, and 6 GB of memory for the largest net.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from stopwatch import Stopwatch
from torch import nn

from trajstore.format.run_spec import BASIS
from trajstore.recording.recorder import Recorder

RESULTS = Path(__file__).parent / "results" / "per_step.json"
NETS = ((10**4, 10), (10**5, 10), (10**6, 10), (10**6, 300), (10**7, 10), (10**8, 10))
"""Parameters, and tensors that they are in."""

STEPS = 50
"""In a turn, at most."""

TURN = 4 * 10**7
"""Parameters that the steps of a turn add up to, unless one step has more."""


def measure(n_params: int, n_tensors: int, n_turns: int) -> dict[str, float]:
    """Time hooks and sums of one net, in microseconds."""
    sizes = [n_params // n_tensors] * n_tensors
    model = nn.ParameterList([nn.Parameter(torch.randn(size)) for size in sizes])
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    read = torch.ones((2 + BASIS) * sum(sizes))
    before, after, floor = Stopwatch(), Stopwatch(), Stopwatch()
    n_steps = max(1, min(STEPS, TURN // n_params))
    with tempfile.TemporaryDirectory() as directory:
        # Hooks run in the order in which they are registered.
        optimizer.register_step_pre_hook(before.begin)
        optimizer.register_step_post_hook(after.begin)
        path = Path(directory) / "run.zarr"
        # No window but the first begins, and what is written of it is written at once.
        with Recorder(path, model, optimizer, steps_per_epoch=10**9) as recorder:
            optimizer.register_step_pre_hook(before.end)
            optimizer.register_step_post_hook(after.end)
            optimizer.step()
            recorder.flush()
            for _ in range(1 + n_turns):
                for _ in range(n_steps):
                    optimizer.step()
                for _ in range(n_steps):
                    floor.begin()
                    read.sum()
                    floor.end()
    # The first step begins the window, and the first turn fills caches.
    hooks = 1e6 * np.add(before.seconds, after.seconds)[1 + n_steps :]
    floors = 1e6 * np.array(floor.seconds)[n_steps:]
    return {
        "hooks": float(np.median(hooks)),
        "floor": float(np.median(floors)),
        "hooks, tenth percentile": float(np.percentile(hooks, 10)),
        "floor, tenth percentile": float(np.percentile(floors, 10)),
        "steps": len(hooks),
    }


def main(
    *,
    largest: int = 10**8,
    turns: int = 20,
    threads: tuple[int, ...] = (1, 2),
    out: Path = RESULTS,
) -> None:
    """Measure, show and keep the results.

    Parameters
    ----------
    largest : int, default: 100000000
        Nets of more parameters are left out.
    turns : int, default: 20
        Turns of every net.
    threads : tuple of int, default: (1, 2)
        Numbers of threads.
    out : Path
        JSON file to write.
    """
    cases = [(n, net) for net in NETS if net[0] <= largest for n in threads]
    rows = []
    for n_threads, (n_params, n_tensors) in track(cases, "per step"):
        torch.set_num_threads(n_threads)
        case = {"parameters": n_params, "tensors": n_tensors, "threads": n_threads}
        rows.append(case | measure(n_params, n_tensors, turns))
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(rows, indent=2) + "\n")
    title = "Microseconds per step: hooks, and one read of the same bytes"
    columns = ("parameters", "tensors", "threads", "hooks", "floor", "ratio")
    table = Table(*columns, box=None, title=title)
    for row in rows:
        table.add_row(
            f"{row['parameters']:,}",
            str(row["tensors"]),
            str(row["threads"]),
            f"{row['hooks']:,.0f}",
            f"{row['floor']:,.0f}",
            f"{row['hooks'] / row['floor']:.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
