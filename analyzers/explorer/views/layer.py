"""Layers by epochs: an image of one quantity, and the curve of the chosen layer."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from bokeh.models import (
    ColorBar,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    PlainText,
    Range1d,
)

from analyzers.explorer.contents.layer_grid import LayerGrid
from analyzers.explorer.contents.shown_run import ShownRun
from analyzers.explorer.views.style import FONT, INK, MUTED, SIGNED, make_figure

ROW_HEIGHT: Final = 13
HEIGHTS: Final = (220, 1100)
FRAME: Final = 92
"""Height of the toolbar and the axis in pixels."""

LABEL_WIDTH: Final = 190
BAR_WIDTH: Final = 64
"""Widths of the names of layers, and of the colour bar, in pixels."""

MAX_NAMES: Final = 90
"""Largest number of rows whose names are written."""


CELL_COLUMNS: Final = (
    *("left", "right", "top", "bottom", "color", "alpha"),
    *("layer", "epochs", "value", "stderr"),
)
"""Columns of the cells of the image, which the page's script fills."""


def layer_view(
    shown: Sequence[ShownRun], grids: Mapping[str, LayerGrid], x_range: Range1d
) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Return the image and the curve, their models, and facts for the page's script."""
    models: list[Any] = []
    facts: dict[str, Any] = {}
    for run in shown:
        grid = grids[run.key]
        images = []
        for i, image in enumerate(grid.images):
            data = {"values": [np.asarray(image.values, np.float32).ravel()]}
            if image.stderr is not None:
                data["stderr"] = [np.asarray(image.stderr, np.float32).ravel()]
            models.append(ColumnDataSource(name=f"{run.key}-image-{i}", data=data))
            images.append(
                {
                    "name": image.name,
                    "title": image.title,
                    "signed": image.is_signed,
                    "errors": image.stderr is not None,
                }
            )
        edges = np.asarray(grid.edges, float)
        facts[run.key] = {
            "layers": grid.layers,
            "modules": [list(module) for module in grid.modules],
            "edges": edges.tolist(),
            "images": images,
        }
    image_figure = _image_figure(grids, x_range, models)
    curve_figure = _curve_figure(x_range, models)
    return [image_figure, curve_figure], models, facts


def _image_figure(
    grids: Mapping[str, LayerGrid], x_range: Range1d, models: list[Any]
) -> Any:
    n_layers = max(len(grid.layers) for grid in grids.values())
    first = next(iter(grids.values()))
    height = int(np.clip(ROW_HEIGHT * n_layers + FRAME, *HEIGHTS))
    made = make_figure(
        "layer-image",
        height=height,
        x_range=x_range,
        y_range=Range1d(len(first.layers), 0, name="layer-image-y"),
        dimensions="width",
    )
    made.min_border_right = BAR_WIDTH
    cells = ColumnDataSource(
        name="layer-cells",
        data={name: [] for name in CELL_COLUMNS},
    )
    quads = made.quad(
        left="left",
        right="right",
        top="top",
        bottom="bottom",
        source=cells,
        fill_color="color",
        fill_alpha="alpha",
        line_color=None,
        nonselection_fill_alpha="alpha",
        name="layer-quads",
    )
    marked = ColumnDataSource(
        name="layer-row", data={"left": [], "right": [], "top": [], "bottom": []}
    )
    made.quad(
        left="left",
        right="right",
        top="top",
        bottom="bottom",
        source=marked,
        fill_color=None,
        line_color=INK,
        line_width=1.5,
        name="layer-mark",
    )
    borders = ColumnDataSource(
        name="layer-borders", data={"x0": [], "y0": [], "x1": [], "y1": []}
    )
    made.segment(
        "x0", "y0", "x1", "y1", source=borders, line_color="white", line_width=2.5
    )
    made.add_tools(
        HoverTool(
            renderers=[quads],
            tooltips=[
                ("layer", "@layer"),
                ("epoch", "@epochs"),
                ("value", "@value{%.4g}"),
                ("standard error", "@stderr{%.2g}"),
            ],
            formatters={"@value": "printf", "@stderr": "printf"},
            point_policy="follow_mouse",
        )
    )
    made.grid.visible = False
    made.min_border_left = LABEL_WIDTH
    name_rows(made, first.layers)
    mapper = LinearColorMapper(
        palette=list(SIGNED), low=-1, high=1, name="layer-colors"
    )
    made.add_layout(
        ColorBar(
            color_mapper=mapper,
            width=8,
            padding=4,
            name="layer-color-bar",
            major_label_text_font=FONT,
            major_label_text_font_size="11px",
            major_label_text_color=MUTED,
            background_fill_color=None,
            border_line_color=None,
            bar_line_color=None,
        ),
        "right",
    )
    models += [cells, marked, borders, mapper]
    return made


def name_rows(made: Any, names: Sequence[str]) -> None:
    """Write the names of layers beside the rows of an image, or some of them."""
    every = -(-len(names) // MAX_NAMES)
    rows = range(0, len(names), every)
    made.yaxis.ticker = FixedTicker(ticks=[i + 0.5 for i in rows], name="layer-ticks")
    # A name is plain text: it may hold dollars, which would begin a formula.
    made.yaxis.major_label_overrides = {i + 0.5: PlainText(text=names[i]) for i in rows}
    made.yaxis.major_label_text_font_size = "10px"
    made.yaxis.axis_label = None
    made.yaxis.name = "layer-axis"


def _curve_figure(x_range: Range1d, models: list[Any]) -> Any:
    made = make_figure(
        "layer-curve",
        height=300,
        x_range=x_range,
        y_range=Range1d(-1, 1, name="layer-curve-y"),
    )
    # The curve lies below the image, epoch by epoch.
    made.min_border_left, made.min_border_right = LABEL_WIDTH, BAR_WIDTH
    source = ColumnDataSource(
        name="layer-curve-data",
        data={"x": [], "value": [], "low": [], "high": [], "stderr": []},
    )
    made.segment(
        "x", "low", "x", "high", source=source, line_color=MUTED, line_width=1.4
    )
    made.line("x", "value", source=source, line_color=INK, line_width=1.6)
    points = made.scatter("x", "value", source=source, color=INK, size=4.5)
    made.add_tools(
        HoverTool(
            renderers=[points],
            tooltips=[
                ("epoch", "@x{0.0}"),
                ("value", "@value{%.4g} ± @stderr{%.2g}"),
            ],
            formatters={"@value": "printf", "@stderr": "printf"},
        )
    )
    models.append(source)
    return made
