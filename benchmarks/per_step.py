"""Compare the time of a recorder's hooks in each step with one read of the same bytes.

The training is plain SGD with constant gradients, so a process only takes steps and runs
hooks. The floor is the time of one sum over as many float32 numbers as must be read:
gradient, parameters and basis. Steps and sums take turns in one process with the same number
of threads, and the table shows medians. Takes about five minutes; the largest net needs 6 GB
of memory.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from saving import RESULTS, save_results
from stopwatch import Stopwatch, timed_recorder
from torch import nn

from trajstore.format.run_spec import BASIS

NETS = ((10**4, 10), (10**5, 10), (10**6, 10), (10**6, 300), (10**7, 10), (10**8, 10))
"""Each net as its number of parameters and its number of parameter tensors."""

MAX_STEPS = 50
"""Maximum number of steps in a turn."""

TURN_PARAMETERS = 4 * 10**7
"""Maximum of parameters times steps in a turn; a turn has at least one step."""


def measure(n_params: int, n_tensors: int, n_turns: int) -> dict[str, float]:
    """Return the times of hooks and sums for one net, in microseconds."""
    sizes = [n_params // n_tensors] * n_tensors
    model = nn.ParameterList([nn.Parameter(torch.randn(size)) for size in sizes])
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    read = torch.ones((2 + BASIS) * sum(sizes))
    floor = Stopwatch()
    n_steps = max(1, min(MAX_STEPS, TURN_PARAMETERS // n_params))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run.zarr"
        # The run has a single window, which the flush below writes before the timed steps.
        with timed_recorder(path, model, optimizer, steps_per_epoch=10**9) as timed:
            recorder, before, after = timed
            optimizer.step()
            recorder.flush()
            for _ in range(1 + n_turns):
                for _ in range(n_steps):
                    optimizer.step()
                for _ in range(n_steps):
                    floor.start()
                    read.sum()
                    floor.stop()
    # The first step starts the window, and the first turn fills caches.
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
    out: Path = RESULTS / "per_step.json",
) -> None:
    """Measure, print and save the results.

    Parameters
    ----------
    largest : int, default: 100000000
        Parameters of the largest net to measure.
    turns : int, default: 20
        Number of turns of each net.
    threads : tuple of int, default: (1, 2)
        Numbers of threads to measure with.
    out : Path
        JSON file to write.
    """
    cases = [(n, net) for net in NETS if net[0] <= largest for n in threads]
    rows = []
    for n_threads, (n_params, n_tensors) in track(cases, "per step"):
        torch.set_num_threads(n_threads)
        case = {"parameters": n_params, "tensors": n_tensors, "threads": n_threads}
        rows.append(case | measure(n_params, n_tensors, turns))
    save_results(rows, out)
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
