"""Table of the results of ``calibration.py``, for the documentation."""

from collections.abc import Iterable
from typing import Any

from calibration_report import SMALLEST_ERROR


def calibration_table(results: dict[str, Any]) -> str:
    """Return the table of honest standard errors, with one line per case."""
    titles = (
        "training",
        "parameters",
        "rms error of gamma: step, epoch mean",
        "z of steps",
        "z of epoch means",
        "z, first epoch",
        "z, last epoch",
        "z by layer",
    )
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]

    def spread(scored: Iterable[dict[str, float]]) -> str:
        values = [s["z"] for s in scored if s["error"] >= SMALLEST_ERROR]
        return f"{min(values):.2f} to {max(values):.2f}" if values else "exact"

    for name, result in results.items():
        parts = result["quantities"].values()
        middle = result["quantities"]["gamma"]["middle"]
        layers = [
            layer
            for found in result.get("layers", {}).values()
            for layer in found.values()
        ]
        cells = [
            name,
            f"{result['parameters']:,}",
            f"{middle['step']['error']:.5f}, {middle['mean']['error']:.5f}",
            spread(part["middle"]["step"] for part in parts),
            spread(part["middle"]["mean"] for part in parts),
            spread(part["first"]["step"] for part in parts),
            spread(part["last"]["step"] for part in parts),
            spread(layers) if layers else "",
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
    seeds = sorted({result["seeds"] for result in results.values()})
    n_recorders = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
    lines += [
        "",
        (
            f"{n_recorders} recorders per case. The largest of the {n} "
            f"mean errors between the first and the last epoch is {worst[0]:.1f} standard errors of that mean ({worst[1]})."
        ),
    ]
    return "\n".join(lines)
