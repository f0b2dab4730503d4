"""Conditions of runs: where they zigzag, the edge of stability, and the alpha-beta polygon."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from bokeh.models import (
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    PlainText,
    Range1d,
    Span,
)

from analyzers._colors import NEGATIVE, POSITIVE
from analyzers.explorer.contents.conditions import Conditions
from analyzers.explorer.contents.shown_run import ShownRun
from analyzers.explorer.views.style import INK, MUTED, RULE, make_figure

HEIGHT: Final = 270
KIND_COLORS: Final = {-1: NEGATIVE, 0: "#d8dde3", 1: POSITIVE}


def condition_view(
    shown: Sequence[ShownRun], found: Mapping[str, Conditions], x_range: Range1d
) -> list[tuple[Any, str, str]]:
    """Return figures with their titles and notes, those for which some run has the values."""
    views = []
    zigzags = [run for run in shown if found[run.key].kinds is not None]
    if zigzags:
        views += [
            (
                _cosine_figure(zigzags, found, x_range),
                "Adjacent gradients",
                "running median of the cosine; the band is the range of single steps",
            ),
            (
                _strip_figure(zigzags, found, x_range),
                "Zigzag segments",
                "red: the run zigzags, blue: it is smooth, grey: neither",
            ),
        ]
    stability = [run for run in shown if found[run.key].stability is not None]
    if stability:
        views.append(
            (
                _stability_figure(stability, found, x_range),
                "Edge of stability",
                "largest Hessian eigenvalue over the stability threshold of the optimizer",
            )
        )
    pairs = [run for run in shown if found[run.key].pairs is not None]
    if pairs:
        views.append(
            (
                _polygon_figure(pairs, found),
                "Alpha-beta condition",
                "pairs above the line hold at every step; star: smallest alpha + beta",
            )
        )
    return views


def _cosine_figure(
    shown: Sequence[ShownRun], found: Mapping[str, Conditions], x_range: Range1d
) -> Any:
    made = make_figure(
        "zigzag-cosine",
        height=HEIGHT,
        x_range=x_range,
        y_range=Range1d(-1.05, 1.05),
        y_label="cosine",
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
    for run in shown:
        columns = found[run.key].cosine
        assert columns is not None
        source = ColumnDataSource(name=f"{run.key}-cosine", data=columns)
        made.varea(
            "x",
            "low",
            "high",
            source=source,
            fill_color=run.color,
            fill_alpha=0.12,
            name=f"{run.key}-cosine-band",
        )
        made.line(
            "x",
            "median",
            source=source,
            line_color=run.color,
            line_width=1.6,
            name=f"{run.key}-cosine-line",
        )
    return made


def _strip_figure(
    shown: Sequence[ShownRun], found: Mapping[str, Conditions], x_range: Range1d
) -> Any:
    made = make_figure(
        "zigzag-segments",
        height=110 + 34 * len(shown),
        x_range=x_range,
        y_range=Range1d(len(shown), 0),
    )
    renderers = []
    for row, run in enumerate(shown):
        kinds = found[run.key].kinds
        assert kinds is not None
        names = {-1: "zigzag", 0: "neither", 1: "smooth"}
        n = len(kinds["kind"])
        source = ColumnDataSource(
            name=f"{run.key}-kinds",
            data={
                "left": kinds["left"],
                "right": kinds["right"],
                "top": np.full(n, row + 0.12, np.float32),
                "bottom": np.full(n, row + 0.88, np.float32),
                "color": [KIND_COLORS[int(k)] for k in kinds["kind"]],
                "kind": [names[int(k)] for k in kinds["kind"]],
                "run": [run.name] * n,
            },
        )
        renderers.append(
            made.quad(
                left="left",
                right="right",
                top="top",
                bottom="bottom",
                source=source,
                fill_color="color",
                line_color=None,
                name=f"{run.key}-strip",
            )
        )
    made.yaxis.ticker = FixedTicker(ticks=[i + 0.5 for i in range(len(shown))])
    made.yaxis.major_label_overrides = {
        i + 0.5: PlainText(text=run.name[:18]) for i, run in enumerate(shown)
    }
    made.yaxis.axis_label = None
    made.grid.visible = False
    made.add_tools(
        HoverTool(
            renderers=renderers,
            tooltips=[
                ("run", "@run"),
                ("kind", "@kind"),
                ("epochs", "@left{0.00} to @right{0.00}"),
            ],
            point_policy="follow_mouse",
        )
    )
    return made


def _stability_figure(
    shown: Sequence[ShownRun], found: Mapping[str, Conditions], x_range: Range1d
) -> Any:
    made = make_figure(
        "stability", height=HEIGHT, x_range=x_range, y_label="sharpness / threshold"
    )
    made.add_layout(
        Span(
            level="underlay",
            location=1,
            dimension="width",
            line_color=MUTED,
            line_dash=[4, 4],
        )
    )
    markers = []
    for run in shown:
        columns = found[run.key].stability
        assert columns is not None
        data = {**columns, "run": [run.name] * len(columns["x"])}
        source = ColumnDataSource(name=f"{run.key}-stability", data=data)
        made.line("x", "ratio", source=source, line_color=run.color, line_width=1.6)
        markers.append(
            made.scatter("x", "ratio", source=source, color=run.color, size=5)
        )
    made.add_tools(
        HoverTool(
            renderers=markers,
            tooltips=[
                ("run", "@run"),
                ("epoch", "@x{0.00}"),
                ("ratio", "@ratio{%.3f}"),
                ("sharpness", "@sharpness{%.4g}"),
            ],
            formatters={"@ratio": "printf", "@sharpness": "printf"},
        )
    )
    return made


def _polygon_figure(shown: Sequence[ShownRun], found: Mapping[str, Conditions]) -> Any:
    made = make_figure(
        "alpha-beta",
        height=HEIGHT + 30,
        x_label="α",
        y_label="β",
        dimensions="both",
    )
    for run in shown:
        pairs = found[run.key].pairs
        assert pairs is not None
        _draw_polygon(made, run, pairs)
    return made


def _draw_polygon(made: Any, run: ShownRun, pairs: xr.Dataset) -> None:
    alpha = pairs["grid_alpha"].values
    top = alpha - float(pairs.attrs["min_gap"])
    lower = pairs["smallest_beta"].values
    known = np.isfinite(lower) & (lower <= top)
    made.varea(
        alpha[known],
        np.clip(lower[known], 0, None),
        top[known],
        fill_color=run.color,
        fill_alpha=0.16,
    )
    made.line(
        alpha[known],
        np.clip(lower[known], 0, None),
        line_color=run.color,
        line_width=1.8,
    )
    made.scatter(
        [float(pairs["best_alpha"])],
        [float(pairs["best_beta"])],
        marker="star",
        size=15,
        fill_color=run.color,
        line_color=INK,
    )
