"""Measure the parts of errors in trainings with default options, from which plans extrapolate.

Each training is recorded once. The analysis then tells what its errors would be if probes were
exact, and if sketches were. Takes about two minutes.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import torch
import tyro
from calibration_trainings import TRAININGS, Training
from planning_like import DEFAULT, record
from rich.console import Console
from saving import RESULTS, save_results

from analyzers.geometry.other_errors import OtherErrors
from trajstore.format.run_spec import RunSpec
from trajstore.format.sketch_size import MAX_BITS, MAX_SIZE
from trajstore.planning.errors import END_ERROR, growth, plain_error, probe_crowding
from trajstore.planning.recorded import optimizer_of

SAME = {"lstm": "LSTM", "heavy": "heavy tails", "gru": "GRU"}
"""Names in ``planning.py``, which measures other windows of the same trainings."""

NAMES = (
    "mlp5k",
    "mlp13k",
    "mlp82k",
    "lstm",
    "label noise",
    "heavy",
    "momentum",
    "residual",
    "cnn",
    "gru",
    "ratings",
    "convolutions, NAdam",
    "mlp86k, Adam",
    "vision transformer",
    "transformer",
    "vocabulary",
)
"""Trainings to measure, of ``calibration_trainings.py``."""

CONSTANTS = Path(__file__).parents[1] / "trajstore" / "planning" / "parts.py"
"""Module that ends with the measured parts."""


def parts_of(training: Training, directory: Path) -> dict[str, Any]:
    """Return the parts of the errors of a training."""
    [run] = record(training, 1, {DEFAULT: {}}, directory).values()
    errors, spec, every = OtherErrors(run), run.spec, training.steps_per_epoch
    # With so many probes, only the sketches of gradients err, and the reverse.
    of_signs = replace(spec, probes=MAX_SIZE)
    fine = replace(spec, sketch_bits=MAX_SIZE, bits_per_number=MAX_BITS, window_folds=0)
    signs, distance = errors.of(of_signs), errors.of(fine)
    alone = errors.of(replace(fine, displacement_sum=False))
    whole = errors.of(spec)
    assert whole.mean is not None
    assert signs.mean is not None
    assert distance.mean is not None
    assert alone.mean is not None
    lengths = run.windows.variables["stop"].values
    share = (lengths - run.windows.variables["start"].values).max() / run.n_steps
    grown, constant = (
        growth(rate, n_steps=run.n_steps, window=share, epoch=every / run.n_steps)
        for rate in (training.rate, "constant")
    )
    optimizer = optimizer_of(run)
    turned = grown.distance if optimizer == "adaptive" else grown.ends
    crowding = probe_crowding(run.layout.n_params, spec.probes)
    # The rounded ends of windows limit what their sums tell of the mean.
    ratio = signs.step / plain_error(spec, run.layout)
    left = every * (whole.mean**2 - signs.mean**2 - distance.mean**2)
    normal = ratio * END_ERROR * (crowding / spec.probes) ** 0.5
    return {
        "optimizer": optimizer,
        "share": share,
        "signs": ratio / (grown.signs / constant.signs),
        "mean_signs": signs.mean * every**0.5 / signs.step,
        "distance": distance.step / turned / crowding**0.5,
        "mean_distance": distance.mean / distance.step,
        "mean_distance_alone": alone.mean / alone.step,
        "ends": 0.0 if optimizer == "adaptive" else max(left, 0.0) ** 0.5 / normal,
        "has_sum": _has_sum(spec, optimizer),
    }


def _has_sum(spec: RunSpec, optimizer: str) -> bool:
    """Whether the sum of a window's gradients is known."""
    return optimizer != "adaptive" or spec.window_folds > 0


def write_constants(results: dict[str, Any]) -> None:
    """Write the constants into the package; format the file afterwards."""
    lines = ["PARTS: Final = {"]
    for name, parts in results.items():
        fields = [
            f"{key}={float(f'{value:.3g}') if isinstance(value, float) else json.dumps(value)}"
            for key, value in parts.items()
            if key != "has_sum"
        ]
        fields.append(f"has_sum={parts['has_sum']}")
        lines.append(f'"{name}": Parts({", ".join(fields)}),')
    lines += ["}", '"""Measured by ``benchmarks/planning_parts.py``."""']
    before = CONSTANTS.read_text().partition("PARTS: Final")[0]
    CONSTANTS.write_text(before + "\n".join(lines) + "\n")


def main(*, out: Path = RESULTS / "planning_parts.json") -> None:
    """Measure, print and save the results.

    Parameters
    ----------
    out : Path
        JSON file to write.
    """
    torch.set_num_threads(1)
    results = {}
    with dask.config.set(scheduler="synchronous"):
        for name in NAMES:
            with tempfile.TemporaryDirectory() as directory:
                title = SAME.get(name, name)
                results[title] = parts_of(TRAININGS[name], Path(directory))
            Console().print({title: results[title]})
    save_results(results, out)
    write_constants(results)


if __name__ == "__main__":
    tyro.cli(main)
