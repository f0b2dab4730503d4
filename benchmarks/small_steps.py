"""Measure what recording costs where steps are short, or windows are.

Plain training and recorded training take turns in two processes, so that other load on the machine
affects both. Ratios of the main thread are medians over pairs of turns; ratios of the whole process
contain the writer thread. Runs with short epochs are compared with the same run without epochs,
also on disk. Takes about five minutes on 2 cores.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from saving import RESULTS, save_results
from torch import nn
from torch.nn import functional as F

import trajstore


class LSTM(nn.Module):
    """A recurrent network that classifies sequences of 20 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 32)
        self.lstm = nn.LSTM(32, 48, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits, (batch, class)."""
        states, _ = self.lstm(self.embedding(tokens))
        logits: torch.Tensor = self.head(states[:, -1])
        return logits


def perceptron() -> tuple[nn.Module, torch.Tensor, int]:
    """Return a network of 3,300 parameters, a batch and the number of classes."""
    layers = (nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 24), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(24, 10)), torch.randn(1024, 20), 10


def lstm() -> tuple[nn.Module, torch.Tensor, int]:
    """Return an LSTM of 20,000 parameters, a batch and the number of classes."""
    return LSTM(), torch.randint(100, (32, 20)), 10


def autoencoder() -> tuple[nn.Module, torch.Tensor, int]:
    """Return a network of 110,000 parameters, a batch and its number of outputs."""
    sizes = (784, 64, 16, 64, 784)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1]), torch.randn(256, 784), 784


def many_tensors() -> tuple[nn.Module, torch.Tensor, int]:
    """Return a network of 300 tensors, a batch and its number of outputs."""
    layers = [nn.Linear(12, 12) for _ in range(150)]
    return nn.Sequential(*layers), torch.randn(8, 12), 12


NETS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor, int]]] = {
    "perceptron": perceptron,
    "LSTM": lstm,
    "autoencoder": autoencoder,
    "300 tensors": many_tensors,
}

STEPS = {"perceptron": 600, "LSTM": 250, "autoencoder": 150, "300 tensors": 200}
"""Steps in a turn of each network."""

EPOCHS: dict[str, int | None] = {
    "no epochs": None,
    "epochs of 12 steps": 12,
    "one step an epoch": 1,
}


def turns(net: str, mode: str) -> None:
    """Train in a child process; wait for a line of input before each turn, and print times."""
    torch.manual_seed(0)
    model, inputs, n_classes = NETS[net]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    targets = torch.randint(n_classes, (len(inputs),))
    recorder: trajstore.Recorder | None = None
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run.zarr"
        if mode != "plain":
            recorder = trajstore.Recorder(
                path, model, optimizer, steps_per_epoch=EPOCHS[mode]
            )
        for line in sys.stdin:
            started = time.thread_time(), time.process_time()
            for _ in range(STEPS[net]):
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
            if line.strip() == "last" and recorder is not None:
                recorder.close()
            main = time.thread_time() - started[0]
            print(main, time.process_time() - started[1], flush=True)
        files = path.rglob("*") if recorder is not None else ()
        print(sum(f.stat().st_size for f in files if f.is_file()), flush=True)


def compete(
    net: str, modes: tuple[str, str], n_turns: int, threads: int
) -> dict[str, float]:
    """Let two modes take turns; return ratios of the second to the first."""
    steps, environment = STEPS[net], os.environ | {"OMP_NUM_THREADS": str(threads)}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "--child", net, mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for mode in modes
    ]

    def turn(child: "subprocess.Popen[str]", line: str) -> list[float]:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f"{line}\n")
        child.stdin.flush()
        return [float(value) for value in child.stdout.readline().split()]

    for child in children:
        turn(child, "first")
    lines = ["more"] * (n_turns - 1) + ["last"]
    times = np.array([[turn(child, line) for child in children] for line in lines])
    disk = [float(child.communicate()[0]) for child in children]
    (first, second), whole = times[..., 0].T, times[..., 1].sum(0)
    return {
        "ms a step": 1e3 * float(np.median(first)) / steps,
        "main thread": float(np.median(second / first)),
        "whole process": float(whole[1] / whole[0]),
        "disk": disk[1] / disk[0] if disk[0] else 0.0,
    }


def main(
    *,
    turns_each: int = 12,
    out: Path = RESULTS / "small_steps.json",
    child: tuple[str, str] | None = None,
) -> None:
    """Measure what recording costs where steps are short.

    Parameters
    ----------
    turns_each : int, default: 12
        Number of turns of each process.
    out : Path, optional
        JSON file to write.
    child : tuple of str, optional
        Act as a child process: the network and the mode.
    """
    if child is not None:
        turns(*child)
        return
    console, results = Console(), list[dict[str, Any]]()
    for net in NETS:
        for threads in (1, 2):
            pair = ("plain", "no epochs")
            found = compete(net, pair, turns_each, threads)
            results.append({"net": net, "threads": threads, "mode": "recorded"} | found)
    for mode in list(EPOCHS)[1:]:
        found = compete("perceptron", ("no epochs", mode), turns_each, 1)
        results.append({"net": "perceptron", "threads": 1, "mode": mode} | found)
    save_results(results, out)
    names = ("net", "threads", "mode", "ms a step", "main thread", "whole process")
    table = Table(*names, "disk", box=None, title="Recorded over plain")
    for row in results:
        numbers = [f"{row[n]:.3f}" for n in (*names[3:], "disk")]
        table.add_row(*(str(row[n]) for n in names[:3]), *numbers)
    console.print(table)


if __name__ == "__main__":
    tyro.cli(main)
