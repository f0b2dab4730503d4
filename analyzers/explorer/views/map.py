"""The path map: stored iterates of runs in the plane of their principal components."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr
from bokeh.models import (
    ColorBar,
    ColumnDataSource,
    CustomJSTickFormatter,
    HoverTool,
    LinearColorMapper,
)
from bokeh.palettes import Viridis256

from analyzers.explorer.contents.curves import Columns
from analyzers.explorer.contents.shown_run import ShownRun
from analyzers.explorer.views.style import FONT, MUTED, TICK_TEXT, make_figure

HEIGHT: Final = 460

MARKERS: Final = {"snapshot": "square", "final": "star"}
SIZES: Final = {"step": 3, "anchor": 7, "snapshot": 10, "final": 15}
CROWD: Final = 100
"""Number of anchors above which they are drawn smaller."""

NAMES: Final = {"step": "iterate, from its probes", "final": "last iterate"}
"""Names of points by their kind."""

Floats = npt.NDArray[np.float64]


def map_view(
    shown: Sequence[ShownRun],
    pca: xr.Dataset,
    scalars: Mapping[str, Columns],
    gammas: Mapping[str, Columns | None],
) -> tuple[Any, list[Any]]:
    """Return the map and its sources."""
    # `scalars` and `gammas` are the curves by epoch, by key of the run.
    share = np.asarray(pca["explained_variance_ratio"].values, float)
    labels = [_axis_label(i, share) for i in range(2)]
    made = make_figure(
        "path-map",
        height=HEIGHT,
        x_label=labels[0],
        y_label=labels[1],
        dimensions="both",
    )
    made.match_aspect = True
    made.xaxis.formatter = CustomJSTickFormatter(code=TICK_TEXT)
    models, columns = [], []
    for run, rows in zip(shown, _rows_of_runs(pca), strict=True):
        found = _points(run, pca, rows, scalars[run.key], gammas.get(run.key))
        columns.append(found)
        models.append(ColumnDataSource(name=f"{run.key}-map", data=found))
    mapper = LinearColorMapper(palette=Viridis256, name="map-colors")
    mapper.low, mapper.high = _range([c["epoch"] for c in columns])
    mapper.nan_color = "#c9d0d8"
    markers = []
    for run, source in zip(shown, models, strict=True):
        made.line(
            "pc1",
            "pc2",
            source=source,
            line_color=run.color,
            line_width=1.6,
            line_alpha=0.75,
            name=f"{run.key}-path",
        )
        markers.append(
            made.scatter(
                "pc1",
                "pc2",
                source=source,
                marker="marker",
                size="size",
                fill_color={"field": "color_by", "transform": mapper},
                line_color=run.color,
                line_width="edge",
                nonselection_alpha=0.15,
                name=f"{run.key}-map-points",
            )
        )
    made.add_layout(_color_bar(mapper), "right")
    made.add_tools(
        HoverTool(
            renderers=markers,
            tooltips=[
                ("run", "@run"),
                ("point", "@kind"),
                ("step", "@step{0,0}"),
                ("epoch", "@epoch{0.00}"),
                ("loss", "@loss{%.4g}"),
                ("rate", "@lr{%.3g}"),
                ("γ", "@gamma{%.4f}"),
            ],
            formatters={"@loss": "printf", "@lr": "printf", "@gamma": "printf"},
        )
    )
    return made, [*models, mapper]


def _axis_label(i: int, share: Floats) -> str:
    label = f"principal component {i + 1}"
    return f"{label} ({100 * share[i]:.1f} % of the variance)" if len(share) > i else ""


def _rows_of_runs(pca: xr.Dataset) -> list[slice]:
    """Return the points of every run; points of a run are consecutive."""
    names = np.asarray(pca["run"].values)
    borders = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), len(names)]
    return [slice(a, b) for a, b in pairwise(borders)]


def _points(
    run: ShownRun,
    pca: xr.Dataset,
    rows: slice,
    scalars: Columns,
    gamma: Columns | None,
) -> dict[str, Any]:
    """Return the columns of a run's points."""
    steps = np.asarray(pca["step"].values[rows], np.int64)
    kinds = [str(kind) for kind in pca["kind"].values[rows]]
    coordinates = np.asarray(pca["coordinate"].values[rows], float)
    last = len(run.position) - 1
    place = run.position[np.clip(steps, 0, last)] if last >= 0 else np.zeros(len(steps))
    place = np.where(steps > last, run.n_epochs, place)
    columns: dict[str, Any] = {
        "pc1": coordinates[:, 0],
        "pc2": coordinates[:, 1] if coordinates.shape[1] > 1 else np.zeros(len(steps)),
        "step": steps.astype(float),
        "epoch": place,
    }
    for name in ("loss", "lr"):
        columns[name] = _at(place, scalars, name)
    columns["gamma"] = _at(place, gamma, "gamma")
    columns["color_by"] = columns["epoch"]
    arrays = {name: np.asarray(c, np.float64) for name, c in columns.items()}
    is_crowded = kinds.count("anchor") > CROWD
    edge = 0.5 if is_crowded else 1.2
    sizes = {**SIZES, "anchor": 4} if is_crowded else SIZES
    return arrays | {
        "run": [run.name] * len(steps),
        "kind": [NAMES.get(kind, kind) for kind in kinds],
        "marker": [MARKERS.get(kind, "circle") for kind in kinds],
        "edge": [0.0 if kind == "step" else edge for kind in kinds],
        "size": [sizes.get(kind, 7) for kind in kinds],
    }


def _at(place: Floats, curves: Columns | None, name: str) -> Floats:
    """Return a curve by epoch at places on the axis of epochs: the mean of their epoch."""
    if curves is None or name not in curves or not len(curves["x"]):
        return np.full(len(place), np.nan)
    index = np.searchsorted(curves["epoch"], place, side="right") - 1
    values: Floats = np.asarray(curves[name], float)[np.clip(index, 0, None)]
    return values


def _range(values: Sequence[Floats]) -> tuple[float, float]:
    known = np.concatenate([v[np.isfinite(v)] for v in values])
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)


def _color_bar(mapper: LinearColorMapper) -> ColorBar:
    return ColorBar(
        name="map-color-bar",
        color_mapper=mapper,
        width=8,
        title="epoch",
        title_text_font=FONT,
        title_text_font_size="11px",
        title_text_font_style="normal",
        title_text_color=MUTED,
        major_label_text_font=FONT,
        major_label_text_font_size="11px",
        major_label_text_color=MUTED,
        background_fill_color=None,
        border_line_color=None,
        bar_line_color=None,
        padding=4,
    )
