"""Runs compared: gamma against a random walk, differences, and a table of settings and numbers."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, Range1d, Span

from analyzers.explorer.contents.curves import Columns, GeometryCurves, mid_run
from analyzers.explorer.contents.shown_run import ShownRun, settings_of
from analyzers.explorer.views.geometry import marker_size
from analyzers.explorer.views.style import RULE, make_figure
from trajstore.format.shown import shown as printable

HEIGHT: Final = 290
NULL_COLOR: Final = "#8b96a3"
MAX_SETTINGS: Final = 60

LAST_DIGIT: Final = 5e-5
"""Half of the last of four digits, relative to the value."""


def comparison_view(
    shown: Sequence[ShownRun],
    nulls: Mapping[str, Columns | None],
    x_range: Range1d,
    active: Mapping[str, ColumnDataSource],
) -> tuple[list[Any], list[Any]]:
    """Return the figures of the view and their models."""
    models: list[Any] = []
    roots = [_null_figure(shown, nulls, x_range, active, models)]
    if len(shown) > 1:
        roots.append(_difference_figure(shown, x_range, models))
    return roots, models


def _null_figure(
    shown: Sequence[ShownRun],
    nulls: Mapping[str, Columns | None],
    x_range: Range1d,
    active: Mapping[str, ColumnDataSource],
    models: list[Any],
) -> Any:
    made = make_figure(
        "null",
        height=HEIGHT,
        x_range=x_range,
        y_range=Range1d(0, 1, name="null-y"),
        y_label="γ (cosine)",
    )
    for run in shown:
        null = nulls.get(run.key)
        if null is None:
            continue
        data = {name: np.asarray(c, np.float32) for name, c in null.items()}
        source = ColumnDataSource(name=f"{run.key}-null", data=data)
        models.append(source)
        made.varea(
            "x",
            "gamma_min",
            "gamma_max",
            source=source,
            fill_color=NULL_COLOR,
            fill_alpha=0.25,
            name=f"{run.key}-null-band",
        )
        made.line(
            "x",
            "gamma",
            source=source,
            line_color=NULL_COLOR,
            line_width=1.4,
            line_dash="dotted",
            name=f"{run.key}-null-line",
        )
        if len(data["x"]) == 1:
            # One point makes neither a band nor a line.
            common = {
                "source": source,
                "color": NULL_COLOR,
                "name": f"{run.key}-null-mean",
            }
            made.segment("x", "gamma_min", "x", "gamma_max", alpha=0.4, **common)
            made.scatter("x", "gamma", size=8, **common)
    markers = []
    for run in shown:
        source = active[run.key]
        common = {"source": source, "line_color": run.color, "name": f"{run.key}-means"}
        made.segment("x", "gamma_low", "x", "gamma_high", line_width=1.6, **common)
        made.line("x", "gamma", line_width=1.8, **common)
        markers.append(
            made.scatter(
                "x",
                "gamma",
                source=source,
                color=run.color,
                size=marker_size(run),
                nonselection_alpha=0.12,
                name=f"{run.key}-points",
            )
        )
    made.add_tools(
        HoverTool(
            renderers=markers,
            tooltips=[
                ("run", "@run"),
                ("epoch", "@epoch{0}"),
                ("γ", "@gamma{%.4f} ± @gamma_stderr{%.2g}"),
            ],
            formatters={"@gamma": "printf", "@gamma_stderr": "printf"},
        )
    )
    return made


def _difference_figure(
    shown: Sequence[ShownRun], x_range: Range1d, models: list[Any]
) -> Any:
    """Return the figure of differences from the first run, which the script fills."""
    made = make_figure(
        "difference",
        height=HEIGHT,
        x_range=x_range,
        y_range=Range1d(-1, 1, name="difference-y"),
        y_label="difference",
    )
    made.add_layout(
        Span(
            level="underlay",
            location=0,
            dimension="width",
            line_color=RULE,
            line_width=1.5,
        )
    )
    markers = []
    for run in shown[1:]:
        source = ColumnDataSource(
            name=f"{run.key}-difference",
            data={"x": [], "value": [], "low": [], "high": [], "stderr": [], "run": []},
        )
        models.append(source)
        options = {"source": source, "line_color": run.color}
        made.segment("x", "low", "x", "high", line_width=1.6, **options)
        made.line("x", "value", line_width=1.8, **options)
        markers.append(
            made.scatter(
                "x", "value", source=source, color=run.color, size=marker_size(run)
            )
        )
    made.add_tools(
        HoverTool(
            renderers=markers,
            tooltips=[
                ("run", "@run"),
                ("epoch", "@x{0.0}"),
                ("difference", "@value{%.4g} ± @stderr{%.2g}"),
            ],
            formatters={"@value": "printf", "@stderr": "printf"},
        )
    )
    return made


def facts_table(
    shown: Sequence[ShownRun],
    curves: Mapping[str, Sequence[GeometryCurves]],
    scalars: Mapping[str, Columns],
) -> list[dict[str, Any]]:
    """Return rows of the table of runs: a name, a value for every run, whether they differ."""
    rows: list[dict[str, Any]] = []

    def add(name: str, values: Sequence[str], kind: str = "number") -> None:
        differs = len(set(values)) > 1
        rows.append(
            {"name": name, "values": list(values), "differs": differs, "kind": kind}
        )

    add("steps", [f"{run.run.n_steps:,}" for run in shown])
    add("epochs", [f"{run.n_epochs:,}" for run in shown])
    add("parameters", [f"{run.run.layout.n_params:,}" for run in shown])
    add("layers", [f"{len(run.run.layout.names):,}" for run in shown])
    add("status", [run.run.status for run in shown])
    for name in ("gamma", "rsi", "eb", "lolr", "distance"):
        label = {"gamma": "γ", "lolr": "loLR", "distance": "distance to x*"}
        values = [_value(curves[run.key], name) for run in shown]
        if any(value != "–" for value in values):
            add(f"{label.get(name, name.upper())}, mid-run", values)
    if all("loss" in scalars[run.key] for run in shown):
        losses = [np.asarray(scalars[run.key]["loss"], float) for run in shown]
        add("loss, first epoch", [_number(loss[0]) for loss in losses if len(loss)])
        add("loss, last epoch", [_number(loss[-1]) for loss in losses if len(loss)])
    settings = [settings_of(run.run) for run in shown]
    names = list(dict.fromkeys(name for found in settings for name in found))
    for name in names[:MAX_SETTINGS]:
        add(name, [_short(found.get(name, "–")) for found in settings], "setting")
    return rows


def _value(curves: Sequence[GeometryCurves], name: str) -> str:
    if not curves:
        return "–"
    return with_error(*mid_run(curves[0].by_epoch, name))


def with_error(value: float, stderr: float) -> str:
    """Write a value with four digits, and its standard error if that reaches the last one."""
    is_visible = stderr > LAST_DIGIT * abs(value)
    return f"{value:.4g} ± {stderr:.1g}" if is_visible else f"{value:.4g}"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= 40 else f"{text[:38]}…"


def distance_table(distances: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the names, cells and note of the table of distances, if there are any."""
    if distances is None:
        return None
    rows = zip(distances["values"], distances["stderr"], strict=True)
    cells = [
        [with_error(value, stderr) for value, stderr in zip(*row, strict=True)]
        for row in rows
    ]
    return {"names": distances["names"], "cells": cells, "note": distances["note"]}
