"""Measure the memory that recording takes once for a process: imports and compiled loops.

Child processes train a network of few parameters with and without a recorder, so that vectors of the
length of the parameters do not count.
"""

import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from statistics import median

import torch
import tyro
from rich.console import Console
from saving import save_results
from torch import nn

MODES = ("plain", "recorded")

N_PARAMS = 212
"""Number of parameters of the network."""


def train_and_print(mode: str, *, n_steps: int = 60) -> None:
    """Train, and print the peak resident memory of this process in bytes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    inputs = torch.randn(32, 8)

    def train() -> None:
        for _ in range(n_steps):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()

    if mode == "plain":
        train()
    else:
        trajstore = import_module("trajstore")  # not in the plain process
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "run.zarr"
            options = {"steps_per_epoch": 20, "total_steps": n_steps}
            with trajstore.Recorder(path, model, optimizer, **options):
                train()
    status = Path("/proc/self/status").read_text()
    print(1024 * int(status.split("VmHWM:")[1].split()[0]))


def measured(mode: str) -> int:
    """Return what a child process prints."""
    command = [sys.executable, __file__, "--child", mode]
    return int(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )


def main(*, repetitions: int = 3, child: str | None = None) -> None:
    """Measure, print and save the results.

    Parameters
    ----------
    repetitions : int, default: 3
        Number of processes of each kind; the first one that records may compile.
    child : str, optional
        Kind of the child process that this process is.
    """
    if child is not None:
        train_and_print(child)
        return
    measured("recorded")
    peaks = {mode: [measured(mode) for _ in range(repetitions)] for mode in MODES}
    medians = {mode: median(values) for mode, values in peaks.items()}
    plans = import_module("trajstore.planning.estimate")  # not in the plain process
    layout = plans.guess_layout(N_PARAMS)
    planned = plans.plan_recording(layout, n_steps=60, steps_per_epoch=20)
    added = medians["recorded"] - medians["plain"]
    results = {
        "peak memory of the process": peaks,
        "planned memory of the recording": planned.memory,
        "for recording": added - planned.memory,
    }
    save_results(results, "process_memory")
    Console().print(results)


if __name__ == "__main__":
    tyro.cli(main)
