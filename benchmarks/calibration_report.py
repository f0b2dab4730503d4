"""Printed report of ``calibration.py``: tables, what is not honest, and comparisons."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from scipy.stats import norm, t

STEP_BAR, MEAN_BAR, LAYER_BAR = (0.9, 1.1), (0.85, 1.15), (0.8, 1.2)
"""Ranges of honest z: of steps and of epoch means between the first and the last epoch, and of layers."""

LARGEST_T = 3.0
"""Bar of the bias at many seeds; at few seeds, the value of Student's t that is as rare."""

LARGEST_LAYER_Z = 6.0

SMALLEST_ERROR = 1e-5
"""Smaller rms errors are those of float32 parameters, which standard errors bound only."""


def table_of(name: str, result: Mapping[str, Any]) -> Table:
    """Return a table of one case: a line for every quantity and part."""
    title = (
        f"{name}: {result['parameters']:,} parameters, {result['steps']} steps, "
        f"{result['seeds']} seeds, {result['bytes']:,.0f} bytes a step"
    )
    table = Table(title=title, box=None, title_justify="left")
    columns = ("step: error", "z", "±", "largest z", "t", "missing")
    for column in ("", "", *columns, "mean: error", *columns[1:]):
        table.add_column(column, justify="right")
    for quantity, parts in result["quantities"].items():
        for part, both in parts.items():
            cells = [cell for scored in both.values() for cell in _cells(scored)]
            table.add_row(quantity, part, *cells)
    for quantity, layers in result.get("layers", {}).items():
        for layer, scored in layers.items():
            table.add_row(f"{quantity} of", layer, *_cells(scored))
    return table


def _cells(scored: Mapping[str, float]) -> list[str]:
    return [
        f"{scored['error']:.5f}",
        f"{scored['z']:.2f}",
        f"{scored['z stderr']:.2f}",
        f"{scored['largest z']:.1f}",
        f"{scored['t']:.1f}",
        f"{scored['missing']:.0%}",
    ]


def outside(results: Mapping[str, Any]) -> list[str]:
    """Return a line for everything that is not honest."""
    lines = []

    def check(
        title: str, scored: Mapping[str, float], bar: tuple[float, float]
    ) -> None:
        if scored["error"] >= SMALLEST_ERROR and not bar[0] <= scored["z"] <= bar[1]:
            z = f"z {scored['z']:.2f} ± {scored['z stderr']:.2f}"
            lines.append(f"{title}: {z}, expected {bar[0]} to {bar[1]}")

    for name, result in results.items():
        rare = t.isf(norm.sf(LARGEST_T), result["seeds"] - 1)
        for quantity, parts in result["quantities"].items():
            title = f"{name}: {quantity}"
            middle = parts["middle"]
            check(f"{title}, steps", middle["step"], STEP_BAR)
            check(f"{title}, epoch means", middle["mean"], MEAN_BAR)
            lines += [
                f"{title}, {part}, {kind}: t {scored['t']:.1f}"
                for part, both in parts.items()
                for kind, scored in both.items()
                if scored["error"] >= SMALLEST_ERROR and abs(scored["t"]) >= rare
            ]
        for quantity, layers in result.get("layers", {}).items():
            for layer, scored in layers.items():
                title = f"{name}: {quantity} of {layer}"
                check(title, scored, LAYER_BAR)
                if scored["largest z"] >= LARGEST_LAYER_Z:
                    lines.append(f"{title}: largest z {scored['largest z']:.1f}")
    return lines


def comparison(new: Mapping[str, Any], old: Mapping[str, Any]) -> Table:
    """Return a table of errors and sizes relative to older results."""
    table = Table(title="new over old, inner epochs", box=None, title_justify="left")
    kinds = [
        (f"{quantity}, {kind}", quantity, kind)
        for quantity in ("gamma", "distance")
        for kind in ("step", "mean")
    ]
    for column in ("", "bytes", *(title for title, *_ in kinds)):
        table.add_column(column, justify="right")
    for name in [name for name in new if name in old]:
        ratios = [new[name]["bytes"] / old[name]["bytes"]]
        for _, quantity, kind in kinds:
            errors = [
                results[name]["quantities"][quantity]["middle"][kind]["error"]
                for results in (new, old)
            ]
            ratios.append(errors[0] / errors[1])
        table.add_row(name, *(f"{ratio:.3f}" for ratio in ratios))
    return table
