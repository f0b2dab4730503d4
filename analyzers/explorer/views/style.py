"""Colours, fonts and empty figures of the page."""

from collections.abc import Sequence
from typing import Any, Final

from bokeh.models import (
    BoxSelectTool,
    BoxZoomTool,
    CustomJSTickFormatter,
    PanTool,
    Range,
    ResetTool,
    SaveTool,
    WheelZoomTool,
)
from bokeh.palettes import Viridis11
from bokeh.plotting import figure

from analyzers._colors import COLORS

RUN_COLORS: Final = COLORS
"""Colours of runs, those of every figure."""

SIGNED: Final = (
    *("#67001f", "#b2182b", "#d6604d", "#f4a582", "#fddbc7", "#f7f7f7"),
    *("#d1e5f0", "#92c5de", "#4393c3", "#2166ac", "#053061"),
)
"""Colours from negative to positive values, those of matplotlib's RdBu."""

UNSIGNED: Final = Viridis11
"""Colours from small to large values."""

INK: Final = "#1f2933"
MUTED: Final = "#66727f"
RULE: Final = "#dfe4ea"
GRID: Final = "#eef1f4"
FONT: Final = (
    "Inter, 'Segoe UI', system-ui, -apple-system, 'Helvetica Neue', sans-serif"
)

TICK_TEXT: Final = """
const digits = "⁰¹²³⁴⁵⁶⁷⁸⁹";
if (tick === 0) return "0";
const size = Math.abs(tick), power = Math.floor(Math.log10(size) + 1e-9);
if (power >= -3 && power < 5) return String(Number(tick.toPrecision(4))).replace("-", "−");
const lead = Number((tick / 10 ** power).toPrecision(3));
const raised = (power < 0 ? "⁻" : "") + [...String(Math.abs(power))].map(d => digits[d]).join("");
const front = lead === 1 ? "" : lead === -1 ? "−" : `${String(lead).replace("-", "−")}·`;
return `${front}10${raised}`;
"""
"""JavaScript that writes the number at a tick."""


def make_figure(
    name: str,
    *,
    height: int,
    x_range: Range | None = None,
    y_range: Range | None = None,
    x_label: str = "epoch",
    y_label: str = "",
    y_axis_type: str = "linear",
    dimensions: str = "width",
    tools: Sequence[Any] = (),
) -> Any:
    """Return an empty figure in the style of the page."""
    ranges: dict[str, Any] = {}
    if x_range is not None:
        ranges["x_range"] = x_range
    if y_range is not None:
        ranges["y_range"] = y_range
    zoom = BoxZoomTool(dimensions=dimensions)
    made = figure(
        name=name,
        height=height,
        sizing_mode="stretch_width",
        y_axis_type=y_axis_type,
        tools=[
            zoom,
            PanTool(dimensions=dimensions),
            WheelZoomTool(dimensions=dimensions),
            BoxSelectTool(dimensions=dimensions),
            *tools,
            ResetTool(),
            SaveTool(),
        ],
        active_drag=zoom,
        active_scroll=None,
        toolbar_location="above",
        toolbar_inner=True,
        min_border_left=58,
        min_border_right=12,
        output_backend="canvas",
        **ranges,
    )
    style_figure(made, x_label=x_label, y_label=y_label)
    return made


def style_figure(made: Any, *, x_label: str, y_label: str) -> None:
    """Set fonts, lines and labels of a figure."""
    made.toolbar.logo = None
    made.toolbar.autohide = True
    made.background_fill_color = None
    made.border_fill_color = None
    made.outline_line_color = None
    made.grid.grid_line_color = GRID
    made.xaxis.axis_label = x_label
    made.yaxis.axis_label = y_label
    for axis in made.axis:
        axis.axis_label_text_font = FONT
        axis.axis_label_text_font_size = "12px"
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_color = MUTED
        axis.major_label_text_font = FONT
        axis.major_label_text_font_size = "11px"
        axis.major_label_text_color = MUTED
        axis.axis_line_color = RULE
        axis.major_tick_line_color = RULE
        axis.minor_tick_line_color = None
        axis.axis_label_standoff = 6
    made.yaxis.formatter = CustomJSTickFormatter(code=TICK_TEXT)
    made.xaxis.ticker.desired_num_ticks = 5
    made.yaxis.ticker.desired_num_ticks = 5
