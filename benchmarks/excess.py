"""How large is an excess of gamma that means nothing?

A perceptron learns scikit-learn's digits, once with their labels and in three seeds with labels that
are drawn in every step, so that nothing can be learnt. Each run is compared with four walks through
its optimizer. Mid-run numbers go to results/excess.json, from which benchmarks/readme.py writes them
into docs/null-models.md. Takes about two minutes on one core.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from saving import save_results
from sklearn.datasets import load_digits
from torch import nn

import analyzers
import trajstore
from trajstore.evaluation import noise_gradients

EPOCHS: Final = 12
STEPS: Final = 28
N_WALKS: Final = 4

OPTIMIZERS: Final[
    dict[str, Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]]
] = {
    "SGD, rate 0.1": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD with momentum, rate 0.02": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "Adam, rate 0.001": lambda p: torch.optim.Adam(p, lr=1e-3),
}


def network(seed: int) -> nn.Module:
    """Return the network at its starting point."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))


def train(path: Path, optimizer_name: str, *, seed: int, is_noise: bool) -> None:
    """Record a run with the labels of the digits, or with labels drawn in every step."""
    digits = load_digits()
    inputs = torch.tensor(digits.data / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    model = network(seed)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    options = {"steps_per_epoch": STEPS, "total_steps": EPOCHS * STEPS, "seed": seed}
    with trajstore.Recorder(path, model, optimizer, **options):  # type: ignore[arg-type]
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(inputs)).split(64)[:STEPS]:
                drawn = torch.randint(10, (len(batch),))
                given = drawn if is_noise else labels[batch]
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs[batch]), given).backward()
                optimizer.step()


def walk(
    run: trajstore.Run, path: Path, optimizer_name: str, *, seed: int, own: int
) -> Any:
    """Record a walk of a run, and return its geometry."""
    model = network(seed)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    options = {"steps_per_epoch": STEPS, "total_steps": run.n_steps, "seed": 100 + own}
    with trajstore.Recorder(path, model, optimizer, **options):  # type: ignore[arg-type]
        for _ in noise_gradients(run, model, optimizer, seed=own):
            optimizer.step()
    return analyzers.path_geometry(path).compute()


def measured(
    folder: Path, optimizer_name: str, *, seed: int, is_noise: bool
) -> dict[str, Any]:
    """Return mid-run excesses over single walks and over all of them, with stated errors."""
    path = folder / f"{is_noise}-{seed}.zarr"
    train(path, optimizer_name, seed=seed, is_noise=is_noise)
    run, geometry = trajstore.open_run(path), analyzers.path_geometry(path).compute()
    walks = [
        walk(
            run,
            folder / f"{is_noise}-{seed}-{k}.zarr",
            optimizer_name,
            seed=seed,
            own=k,
        )
        for k in range(N_WALKS)
    ]

    def by_epoch(null: Any) -> Any:
        return analyzers.epoch_means(analyzers.excess_gamma(geometry, run, null=null))

    single = [by_epoch(one) for one in walks]
    excesses = [float(analyzers.mid_run(one).excess) for one in single]
    together = analyzers.mid_run(by_epoch(walks))
    middle = slice(EPOCHS // 4, 3 * EPOCHS // 4)
    epochs = np.array([one.excess.values[middle] for one in single])
    return {
        "excess": float(together.excess),
        "stated with all walks": float(together.excess_stderr),
        "stated with one walk": float(analyzers.mid_run(single[0]).excess_stderr),
        "std between walks": float(np.std(excesses, ddof=1)),
        "largest std between walks in an epoch": float(epochs.std(0, ddof=1).max()),
    }


def main() -> None:
    """Measure all runs, and save the numbers."""
    results: dict[str, Any] = {}
    for name in OPTIMIZERS:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = {
                "labels": measured(Path(folder), name, seed=0, is_noise=False),
                "drawn": [
                    measured(Path(folder), name, seed=seed, is_noise=True)
                    for seed in range(3)
                ],
            }
    save_results(results, "excess")


if __name__ == "__main__":
    main()
