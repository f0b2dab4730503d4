"""Table of the results of ``calibration.py``, for the documentation."""

import math
from collections.abc import Iterable
from typing import Any

from calibration_report import (
    LARGEST_LAYER_Z,
    LARGEST_T,
    LAYER_BAR,
    MEAN_BAR,
    SMALLEST_ERROR,
    STEP_BAR,
    rare_t,
)
from scipy.stats import t as student

GAMMA_BARS = {"SGD": 0.3, "momentum": 0.55, "AdamW": 0.7}
"""Largest errors of mean gamma of an epoch relative to the older version, by optimizer."""

DISTANCE_BAR, SKETCH_BAR, BYTES_BAR = 0.3, 0.35, 1.05

SMALL_PARAMETERS = 16_000
"""Networks with fewer parameters have the bar of the sketch."""


SAME_WHOLE = 5
"""Oldest version of the estimator whose results of whole networks, without layers, are today's."""


def calibration_table(results: dict[str, Any]) -> str:
    """Return the table of honest standard errors, with one line per case."""
    titles = (
        "training",
        "parameters",
        "recorders",
        "rms error of gamma: step, epoch mean",
        "z of steps",
        "z of epoch means",
        "z, first epoch",
        "z, last epoch",
        "z by layer",
        "largest z by layer",
        "largest t",
    )
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]

    def spread(
        scored: Iterable[dict[str, float]],
        bar: tuple[float, float] = (0.0, math.inf),
    ) -> str:
        values = [s["z"] for s in scored if s["error"] >= SMALLEST_ERROR]
        if not values:
            return "exact"
        is_inside = bar[0] <= min(values) and max(values) <= bar[1]
        return marked(f"{min(values):.2f} to {max(values):.2f}", is_inside=is_inside)

    def largest(values: Iterable[float], limit: float) -> str:
        highest = max(values, default=math.nan)
        if math.isnan(highest):
            return ""
        return marked(f"{highest:.1f}", is_inside=highest < limit)

    latest = max(result.get("estimator", 0) for result in results.values())
    for name, result in results.items():
        measured = result.get("estimator", 0)
        of_whole, of_layers = (
            " \\*" if measured < version else "" for version in (SAME_WHOLE, latest)
        )
        parts = result["quantities"].values()
        middle = result["quantities"]["gamma"]["middle"]
        layers = [
            layer
            for found in result.get("layers", {}).values()
            for layer in found.values()
        ]
        cells = [
            f"{name}{of_whole}",
            f"{result['parameters']:,}",
            f"{result['seeds']}",
            f"{middle['step']['error']:.5f}, {middle['mean']['error']:.5f}",
            spread((part["middle"]["step"] for part in parts), STEP_BAR),
            spread((part["middle"]["mean"] for part in parts), MEAN_BAR),
            spread(part["first"]["step"] for part in parts),
            spread(part["last"]["step"] for part in parts),
            f"{spread(layers, LAYER_BAR)}{of_layers}" if layers else "",
            largest((layer["largest z"] for layer in layers), LARGEST_LAYER_Z),
            largest(
                (
                    abs(scored["t"])
                    for part in parts
                    for scored in part["middle"].values()
                    if scored["error"] >= SMALLEST_ERROR
                ),
                rare_t(result["seeds"]),
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    worst = max(
        (abs(scored["t"]), f"{quantity} of {name}, {kind}")
        for name, result in results.items()
        for quantity, parts in result["quantities"].items()
        for kind, scored in parts["middle"].items()
        if scored["error"] >= SMALLEST_ERROR
    )
    n = sum(2 * len(result["quantities"]) for result in results.values())
    lines += [
        "",
        (
            f"The largest of the {n} mean errors between the first and the last epoch is "
            f"{worst[0]:.1f} standard errors of that mean ({worst[1]})."
        ),
    ]
    return "\n".join(lines)


def expected_errors_table(results: dict[str, dict[str, float]]) -> str:
    """Return the table of expected z by term, with one line per training."""
    titles = {
        "products": "<g, v'>, steps",
        "probes": "<x - r, v'>, steps",
        "start": "the same, start of a window",
        "end": "the same, end of a window",
        "gradients": "sum of gradients",
        "displacements": "sum of displacements",
        "sums": "<x - r, v'> by the sums of SGD",
        "means": "mean of <g, v'> of a window of SGD",
    }
    lines = [
        f"| training | {' | '.join(titles.values())} |",
        "|---" * (len(titles) + 1) + "|",
    ]
    for name, found in results.items():
        cells = (f"{found[term]:.2f}" if term in found else "" for term in titles)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def bias_table(results: dict[str, dict[str, Any]]) -> str:
    """Return the table of mean errors, with one line per training."""
    titles = (
        "training",
        "recorders",
        "values of t",
        "3 or more",
        "expected by chance",
        "largest",
        "3 or more again",
    )
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, found in results.items():
        values = [abs(value) for value in found["t"].values()]
        chance = 2 * student.sf(LARGEST_T, found["seeds"] - 1) * len(values)
        again = sum(
            abs(value) >= LARGEST_T and value * found["t"][key] > 0
            for key, value in found["repeated"].items()
        )
        cells = (
            name,
            f"{found['seeds']}",
            f"{len(values)}",
            f"{sum(value >= LARGEST_T for value in values)}",
            f"{chance:.1f}",
            f"{max(values):.1f}",
            marked(f"{again}", is_inside=not again),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gains_table(results: dict[str, dict[str, Any]]) -> str:
    """Return the table of errors relative to those of an older version, with one line per training."""
    titles = (
        "training",
        "parameters",
        "optimizer",
        "bytes",
        "gamma, epoch mean",
        "distance, step",
        "distance, epoch mean",
        "sketch, step",
    )
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, found in results.items():
        new, old, optimizer = found["new"], found["old"], found["optimizer"]
        is_small = new["parameters"] < SMALL_PARAMETERS
        is_sgd = optimizer in {"SGD", "momentum"}
        bars = {
            "bytes": BYTES_BAR,
            "gamma, epoch mean": GAMMA_BARS[optimizer],
            "distance, step": DISTANCE_BAR if is_sgd else math.inf,
            "distance, epoch mean": DISTANCE_BAR if is_sgd else math.inf,
            "sketch, step": SKETCH_BAR if is_small else math.inf,
        }
        ratios = {key: round(new[key] / old[key], 3) for key in bars}
        cells = (
            marked(f"{ratio:.2f}", is_inside=ratio <= bars[key])
            for key, ratio in ratios.items()
        )
        of_run = f"{name} | {new['parameters']:,} | {optimizer}"
        lines.append(f"| {of_run} | {' | '.join(cells)} |")
    return "\n".join(lines)


def marked(text: str, *, is_inside: bool) -> str:
    """Return the text of a cell, bold where a bar is missed."""
    return text if is_inside else f"**{text}**"
