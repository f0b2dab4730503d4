"""Look for biases of estimates: 64 recorders of one training run, and tiny networks.

t is the mean error of the recorders in standard errors of that mean, of every quantity in the first,
the middle and the last epochs, of steps and of epoch means, and of layers. Of hundreds of values some pass
3 by chance. The test was fixed before the first measurement: if a value of a training passes 3, 64
recorders with other seeds record the same training, and a quantity is biased if it passes 3 again, with
the same sign.

    python benchmarks/bias.py sgd
"""

import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from calibration import measure
from calibration_loops import perceptron
from calibration_report import LARGEST_T, SMALLEST_ERROR
from calibration_trainings import Case, Training
from rich.console import Console
from saving import RESULTS, save_results

SEEDS = 64

FOLDED = {"sketch_bits": 1 << 10, "probes": 256}
"""Fewer signs and probes than parameters, so that errors are not those of rounding."""

PACKED = {"sketch_bits": 1 << 13, "probes": 128}

BY_LAYER = Case(recorder=FOLDED, layers=True)

TRAININGS: dict[str, Training] = {
    "sgd": Training(
        start=partial(perceptron, widths=(12, 32, 28, 4)),
        cases={
            "folded": BY_LAYER,
            "packed": Case(recorder=PACKED),
            "weight decay": Case(recorder=FOLDED, weight_decay=0.5),
        },
        steps_per_epoch=12,
        epochs=8,
    ),
    "momentum": Training(
        start=partial(perceptron, widths=(20, 58, 58, 5), lr=0.05, momentum=0.9),
        cases={
            "folded": BY_LAYER,
            "packed": Case(recorder=PACKED),
            "snapshot": Case(recorder=FOLDED, reference="snapshot"),
        },
        optimizer="momentum",
        steps_per_epoch=16,
        epochs=6,
    ),
    # Of layers, estimates of the distance are drawn towards those of the whole, see the docs.
    "Adam": Training(
        start=partial(perceptron, widths=(8, 48, 3), lr=2e-3, is_adam=True),
        cases={
            "folded": Case(recorder={"sketch_bits": 1 << 8, "probes": 128}),
            "packed": Case(recorder={"sketch_bits": 1 << 12, "probes": 64}),
        },
        optimizer="adaptive",
        steps_per_epoch=16,
        epochs=6,
    ),
}


def found_t(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of t of a case by name, of quantities whose errors are not those of rounding."""
    scored = {
        f"{quantity}, {part}, {kind}": values
        for quantity, parts in result["quantities"].items()
        for part, both in parts.items()
        for kind, values in both.items()
    } | {
        f"{quantity} of {layer}, middle, step": values
        for quantity, layers in result.get("layers", {}).items()
        for layer, values in layers.items()
    }
    return {
        name: values["t"]
        for name, values in scored.items()
        if values["error"] >= SMALLEST_ERROR
    }


def measure_t(training: Training, first_seed: int) -> dict[str, float]:
    """Record a training run under `SEEDS` recorders; return the values of t by case and name."""
    with tempfile.TemporaryDirectory() as folder:
        cases = measure(
            training,
            SEEDS,
            Path(folder),
            lambda *_: lambda: None,
            first_seed=first_seed,
        )
    return {
        f"{case}: {name}": t
        for case, result in cases.items()
        for name, t in found_t(result).items()
    }


def main(names: tuple[str, ...] = (), /, *, out: Path = RESULTS / "bias.json") -> None:
    """Measure, print and save values of t.

    Parameters
    ----------
    names : str
        Trainings; all by default.
    out : Path
        JSON file to write; results of other trainings in the file are kept.
    """
    torch.set_num_threads(1)
    console = Console()
    for name in names or TRAININGS:
        first = measure_t(TRAININGS[name], 0)
        passing = [key for key, t in first.items() if abs(t) >= LARGEST_T]
        again = measure_t(TRAININGS[name], SEEDS) if passing else {}
        repeated = {key: again[key] for key in passing}
        kept = json.loads(out.read_text()) if out.exists() else {}
        found = {"seeds": SEEDS, "t": first, "repeated": repeated}
        save_results(kept | {name: found}, out)
        largest = max(map(abs, first.values()))
        console.print(f"{name}: {len(first)} values, largest {largest:.1f}")
        for key, t in repeated.items():
            console.print(f"  {key}: {first[key]:.1f}, again {t:.1f}", markup=False)


if __name__ == "__main__":
    tyro.cli(main)
