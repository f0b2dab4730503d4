"""Measure what recording costs where steps are short, or epochs are.

Plain training and recorded training take turns in two processes, so that other load on the machine
affects both. Ratios of the time of a step, and of the processor time of the main thread, are medians
over pairs of turns. Two processes of the same plain training may differ by a tenth, because their
memory lies elsewhere; the results are medians over several pairs of processes, with the least and
the largest ratio. The processor time of the whole process contains the writer thread and closing
the recorder. Runs with short epochs are compared with plain training, and with the same recording
without epochs, also on disk. Takes about ten minutes on 2 cores; with the name of a case, a minute.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
import tyro
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from saving import RESULTS, save_results
from torch import nn
from torch.nn import functional as F

import trajstore
from trajstore.integrations.lightning import TrajectoryCallback


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
    return nn.Sequential(*layers, nn.Linear(24, 10)), torch.randn(2048, 20), 10


def lstm() -> tuple[nn.Module, torch.Tensor, int]:
    """Return an LSTM of 20,000 parameters, a batch and the number of classes."""
    return LSTM(), torch.randint(100, (80, 20)), 10


def cnn() -> tuple[nn.Module, torch.Tensor, int]:
    """Return a convolutional network of 55,000 parameters, a batch and the number of classes."""
    features = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    features += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    head = (nn.Flatten(), nn.Linear(32 * 7 * 7, 32), nn.ReLU(), nn.Linear(32, 10))
    return nn.Sequential(*features, *head), torch.randn(64, 1, 28, 28), 10


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
    "CNN": cnn,
    "autoencoder": autoencoder,
    "300 tensors": many_tensors,
}

STEPS = {
    "perceptron": 500,
    "LSTM": 120,
    "CNN": 40,
    "autoencoder": 80,
    "300 tensors": 100,
}
"""Steps in a turn of each network."""

EPOCHS: dict[str, int | None] = {
    "no epochs": None,
    "epochs of 12 steps": 12,
    "one step an epoch": 1,
}
"""Steps in an epoch of recorded training, by mode; the other mode is plain training."""


class Case(NamedTuple):
    """A network, and the two modes in which it is trained by turns."""

    net: str
    first: str
    second: str


CASES = {
    **{net: Case(net, "plain", "no epochs") for net in NETS},
    "epochs of 12 steps": Case("perceptron", "plain", "epochs of 12 steps"),
    "epochs of 12 steps, over no epochs": Case(
        "perceptron", "no epochs", "epochs of 12 steps"
    ),
    "one step an epoch, over no epochs": Case(
        "perceptron", "no epochs", "one step an epoch"
    ),
}


class Turns:
    """Waits for a line of input before each turn, and prints the times that it took."""

    def __init__(self, n_steps: int, n_turns: int) -> None:
        self._n_steps, self._n_turns, self._n_done = n_steps, n_turns, 0
        self._started: tuple[float, ...] = ()
        self._whole = 0.0

    def __iter__(self) -> Iterator[None]:
        """Yield once for every step."""
        for _ in range(self._n_steps * self._n_turns):
            self.begin_step()
            yield
        self.begin_step()

    def begin_step(self) -> None:
        """Begin a turn if a turn has ended."""
        if self._n_done % self._n_steps == 0:
            if self._started:
                print(*np.subtract(_times(), self._started), flush=True)
            if self._n_done == self._n_steps:
                # The first turn does not count.
                self._whole = time.process_time()
            sys.stdin.readline()
            self._started = _times()
        self._n_done += 1

    def close(self, path: Path) -> None:
        """Print the processor time of all turns but the first, and the size of a store."""
        whole = time.process_time() - self._whole
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        print(whole, size, flush=True)


def _times() -> tuple[float, float]:
    return time.perf_counter(), time.thread_time()


class Pace(Callback):
    """Lets training with Lightning take turns."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_train_batch_start(self, *_arguments: Any) -> None:
        """Begin a turn if a turn has ended."""
        self._turns.begin_step()

    def on_train_end(self, *_arguments: Any) -> None:
        """End the last turn, before callbacks that come later close the recorder."""
        self._turns.begin_step()


class Autoencoder(lightning.LightningModule):
    """An autoencoder that Lightning trains."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: list[torch.Tensor], _index: int) -> torch.Tensor:
        """Return the squared error of a batch."""
        return F.mse_loss(self.model(batch[0]), batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def train_with_lightning(path: Path, turns: Turns, n_steps: int, mode: str) -> None:
    """Train the autoencoder in a child process."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    model, inputs, _ = NETS["autoencoder"]()
    batch_size = len(inputs)
    data = torch.utils.data.TensorDataset(torch.randn(16 * batch_size, 784))
    callbacks: list[Callback] = [Pace(turns)]
    if mode != "plain":
        callbacks.append(TrajectoryCallback(path))
    trainer = lightning.Trainer(
        max_steps=n_steps,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(data, batch_size=batch_size, shuffle=True)
    trainer.fit(Autoencoder(model), loader)


def train(path: Path, turns: Turns, net: str, mode: str) -> None:
    """Train a network in a child process."""
    model, inputs, n_classes = NETS[net]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    targets = torch.randint(n_classes, (len(inputs),))
    recorder: trajstore.Recorder | None = None
    if mode != "plain":
        recorder = trajstore.Recorder(
            path, model, optimizer, steps_per_epoch=EPOCHS[mode]
        )
    for _ in turns:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    if recorder is not None:
        recorder.close()


def take_turns(net: str, mode: str, n_turns: int) -> None:
    """Train in a child process."""
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    turns = Turns(STEPS[net], n_turns + 1)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run.zarr"
        if net == "autoencoder":
            train_with_lightning(path, turns, STEPS[net] * (n_turns + 1), mode)
        else:
            train(path, turns, net, mode)
        turns.close(path)


def compete(case: Case, n_turns: int, threads: int) -> dict[str, float]:
    """Let two modes take turns; return ratios of the second to the first."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "--child", case.net, mode, str(n_turns)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for mode in (case.first, case.second)
    ]

    def turn(child: "subprocess.Popen[str]") -> list[float]:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("\n")
        child.stdin.flush()
        return [float(value) for value in child.stdout.readline().split()]

    times = np.array([[turn(c) for c in children] for _ in range(n_turns + 1)])[1:]
    ends = [list(map(float, c.communicate("\n")[0].split())) for c in children]
    (whole, disk), (second_whole, second_disk) = ends
    step, main = np.median(times[:, 1] / times[:, 0], axis=0)
    return {
        "ms a step": 1e3 * float(np.median(times[:, 0, 0])) / STEPS[case.net],
        "step": float(step),
        "main thread": float(main),
        "whole process": second_whole / whole,
        "disk": second_disk / disk if disk else 0.0,
        "KB a step": second_disk / 1e3 / STEPS[case.net] / (n_turns + 1),
    }


def compete_in_pairs(
    case: Case, n_turns: int, threads: int, n_pairs: int
) -> dict[str, float]:
    """Return medians over pairs of processes, and the extremes for the main thread."""
    found = [compete(case, n_turns, threads) for _ in range(n_pairs)]
    of_pairs = {name: [pair[name] for pair in found] for name in found[0]}
    main_thread = of_pairs["main thread"]
    extremes = {"least": min(main_thread), "most": max(main_thread)}
    return {n: float(np.median(v)) for n, v in of_pairs.items()} | extremes


def main(
    *,
    cases: tuple[str, ...] = (),
    threads: tuple[int, ...] = (1, 2),
    turns: int = 6,
    pairs: int = 3,
    out: Path = RESULTS / "small_steps.json",
    child: tuple[str, str, int] | None = None,
) -> None:
    """Measure what recording costs where steps are short.

    Parameters
    ----------
    cases : tuple of str, default: ()
        Names of the cases to measure, such as LSTM; () for all.
    threads : tuple of int, default: (1, 2)
        Numbers of threads.
    turns : int, default: 6
        Number of turns of each process.
    pairs : int, default: 3
        Number of pairs of processes.
    out : Path, optional
        JSON file whose rows are replaced.
    child : tuple, optional
        Act as a child process: the network, the mode and the number of turns.
    """
    if child is not None:
        take_turns(*child)
        return
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    if out.exists():
        rows = {(r["case"], r["threads"]): r for r in json.loads(out.read_text())}
    for name in cases or CASES:
        for n_threads in threads:
            case = CASES[name]
            found = compete_in_pairs(case, turns, n_threads, pairs)
            rows[name, n_threads] = {
                "case": name,
                "threads": n_threads,
                "net": case.net,
                "parameters": sum(p.numel() for p in NETS[case.net]()[0].parameters()),
                "over": case.first,
                **found,
            }
    order = list(CASES)
    results = sorted(
        rows.values(), key=lambda r: (order.index(r["case"]), r["threads"])
    )
    save_results(results, out)
    names = [name for name, value in results[0].items() if isinstance(value, float)]
    title = "Recorded over plain, or as the name says"
    table = Table("case", "threads", *names, box=None, title=title)
    for row in results:
        numbers = [f"{row[name]:.3f}" for name in names]
        table.add_row(row["case"], str(row["threads"]), *numbers)
    Console(width=130).print(table)


if __name__ == "__main__":
    tyro.cli(main)
