"""Panels of gamma, RSI, EB, loLR, distance and loss against the epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from bokeh.models import (
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    LinearScale,
    LogScale,
    Range1d,
)

from analyzers.explorer.contents.curves import QUANTITIES, Columns, GeometryCurves
from analyzers.explorer.contents.shown_run import ShownRun
from analyzers.explorer.views.style import make_figure

HEIGHT: Final = 250

VIEWS: Final = {
    "view": ("x", "low", "high", "value"),
    "errors": ("x", "low", "high", "width"),
}
"""Sources of each curve: the range of steps, and the ends and widths of error bars."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelSpec:
    """A panel of the geometry view."""

    key: str
    title: str
    note: str
    y_label: str
    is_log: bool  # whether the axis is logarithmic at first


PANELS: Final = (
    PanelSpec(
        key="gamma",
        title="γ",
        note="cosine of gradient and x − x*",
        y_label="γ (cosine)",
        is_log=False,
    ),
    PanelSpec(
        key="distance",
        title="Distance",
        note="|x − x*|",
        y_label="distance to x*",
        is_log=False,
    ),
    PanelSpec(
        key="rsi",
        title="RSI",
        note="⟨g, x − x*⟩ / |x − x*|²",
        y_label="RSI",
        is_log=True,
    ),
    PanelSpec(
        key="eb",
        title="EB",
        note="|g| / |x − x*|",
        y_label="EB",
        is_log=True,
    ),
    PanelSpec(
        key="lolr",
        title="loLR",
        note="dashed: the rate used",
        y_label="learning rate",
        is_log=True,
    ),
    PanelSpec(
        key="loss",
        title="Loss",
        note="training; dashed: validation",
        y_label="loss",
        is_log=True,
    ),
)


def geometry_view(
    shown: Sequence[ShownRun],
    curves: Mapping[str, Sequence[GeometryCurves]],
    scalars: Mapping[str, tuple[Columns, Columns]],
    x_range: Range1d,
) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Return the roots of the view, its other models, and facts for the page's script."""
    # `curves` and `scalars` are by key of the run.
    models: list[Any] = []
    sources: dict[str, dict[str, ColumnDataSource]] = {}
    for run in shown:
        by_epoch, by_step = scalars[run.key]
        own = {
            "active": ColumnDataSource(
                name=f"{run.key}-active", data=_active(run, by_epoch, curves[run.key])
            ),
            "scalars": ColumnDataSource(
                name=f"{run.key}-scalars", data=_scalar_columns(run, by_epoch)
            ),
            "scalar-steps": ColumnDataSource(
                name=f"{run.key}-scalar-steps", data=by_step
            ),
        }
        for i, geometry in enumerate(curves[run.key]):
            own[f"epochs-{i}"] = ColumnDataSource(
                name=f"{run.key}-epochs-{i}", data=epoch_columns(run, geometry.by_epoch)
            )
            own[f"steps-{i}"] = ColumnDataSource(
                name=f"{run.key}-steps-{i}", data=geometry.by_step
            )
        sources[run.key] = own
        models += own.values()
    roots = [_panel(panel, shown, sources, x_range, models) for panel in PANELS]
    models += [LinearScale(name="scale-linear"), LogScale(name="scale-log")]
    facts = {
        "panels": [
            {"key": p.key, "log": p.is_log, "title": p.title, "note": p.note}
            for p in PANELS
        ],
        "targets": {
            run.key: [{"label": g.label, "note": g.note} for g in curves[run.key]]
            for run in shown
        },
    }
    return roots, models, facts


def epoch_columns(run: ShownRun, by_epoch: Columns) -> dict[str, Any]:
    """Return the columns that panels draw: curves by epoch, and the ends of error bars."""
    columns: dict[str, Any] = dict(by_epoch)
    for name in QUANTITIES:
        value, stderr = columns[name], columns[f"{name}_stderr"]
        columns[f"{name}_low"] = value - stderr
        columns[f"{name}_high"] = value + stderr
    columns = {name: np.asarray(c, np.float32) for name, c in columns.items()}
    return columns | {"run": [run.name] * len(columns["x"])}


def _active(
    run: ShownRun, scalars: Columns, curves: Sequence[GeometryCurves]
) -> dict[str, Any]:
    """Return the columns of the first target, NaN without a geometry."""
    if curves:
        return epoch_columns(run, curves[0].by_epoch)
    x = scalars["x"]
    unknown = np.full(len(x), np.nan)
    columns = {
        f"{name}{suffix}": unknown
        for name in QUANTITIES
        for suffix in ("", "_stderr", "_min", "_max")
    }
    return epoch_columns(run, columns | {"x": x, "epoch": scalars["epoch"]})


def _scalar_columns(run: ShownRun, by_epoch: Columns) -> dict[str, Any]:
    n = len(by_epoch["x"])
    unknown = np.full(n, np.nan)
    names = ("loss", "loss_min", "loss_max", "lr", "validation")
    columns = {name: by_epoch.get(name, unknown) for name in names}
    columns |= {"x": by_epoch["x"], "epoch": by_epoch["epoch"]}
    arrays = {name: np.asarray(c, np.float32) for name, c in columns.items()}
    return arrays | {"run": [run.name] * n}


def marker_size(run: ShownRun) -> float:
    """Return the size of the markers of a run's epochs in pixels, smaller for more epochs."""
    return 5 if run.n_epochs <= 80 else 3 if run.n_epochs <= 200 else 1.5


def _panel(
    panel: PanelSpec,
    shown: Sequence[ShownRun],
    sources: Mapping[str, Mapping[str, ColumnDataSource]],
    x_range: Range1d,
    models: list[Any],
) -> Any:
    """Return one panel; the page's script sets the scale and the ticks of its axis."""
    q = panel.key
    made = make_figure(
        q,
        height=HEIGHT,
        x_range=x_range,
        y_range=Range1d(0.1, 1.0, name=f"{q}-y"),
        y_label=panel.y_label,
    )
    made.yaxis.ticker = FixedTicker(ticks=[], name=f"{q}-ticks")
    made.ygrid.ticker = made.yaxis[0].ticker
    markers = []
    for run in shown:
        own = sources[run.key]
        source = own["scalars"] if q == "loss" else own["active"]
        # The page's script fills these sources for the range and the scale of the axes.
        view, errors = (
            ColumnDataSource(
                name=f"{run.key}-{q}-{name}", data={column: [] for column in columns}
            )
            for name, columns in VIEWS.items()
        )
        models += [view, errors]
        _draw_run(made, run, q, source, view, errors)
        if q == "lolr":
            made.line(
                "x",
                "lr",
                source=own["scalars"],
                color=run.color,
                line_dash="dashed",
                line_width=1.4,
                name=f"{run.key}-rate",
            )
        if q == "loss":
            made.line(
                "x",
                "validation",
                source=source,
                color=run.color,
                line_dash="dashed",
                line_width=1.4,
                name=f"{run.key}-validation",
            )
        markers.append(
            made.scatter(
                "x",
                q,
                source=source,
                color=run.color,
                size=marker_size(run),
                alpha=0.9,
                nonselection_alpha=0.12,
                selection_line_color=None,
                name=f"{run.key}-points",
            )
        )
    made.add_tools(_hover(panel, markers))
    return made


def _hover(panel: PanelSpec, markers: list[Any]) -> HoverTool:
    q = panel.key
    error = "" if q == "loss" else f" ± @{q}_stderr{{%.2g}}"
    title = panel.title.split()[0]
    rows = [
        ("run", "@run"),
        ("epoch", "@epoch{0}"),
        (title, f"@{q}{{%.4g}}{error}"),
        ("steps", f"@{q}_min{{%.4g}} to @{q}_max{{%.4g}}"),
    ]
    columns = [f"@{q}{suffix}" for suffix in ("", "_min", "_max", "_stderr")]
    return HoverTool(
        renderers=markers,
        tooltips=rows,
        formatters=dict.fromkeys(columns, "printf"),
        point_policy="snap_to_data",
    )


def _draw_run(
    made: Any, run: ShownRun, q: str, source: Any, view: Any, errors: Any
) -> None:
    """Draw a run: the range of its steps, its means and their errors, and its single steps."""
    made.varea(
        "x",
        "low",
        "high",
        source=view,
        fill_color=run.color,
        fill_alpha=0.15,
        name=f"{run.key}-band",
    )
    made.line(
        "x",
        "value",
        source=view,
        line_color=run.color,
        line_alpha=0.55,
        line_width=0.9,
        name=f"{run.key}-steps",
    )
    if q != "loss":
        made.segment(
            "x",
            "low",
            "x",
            "high",
            source=errors,
            line_color=run.color,
            line_width="width",
            line_alpha=0.7,
            name=f"{run.key}-errors",
        )
    made.line(
        "x",
        q,
        source=source,
        line_color=run.color,
        line_width=1.8,
        name=f"{run.key}-means",
    )
