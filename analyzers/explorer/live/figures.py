"""Figures of a run that is being recorded."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, Range1d, Span

from analyzers._colors import NEGATIVE
from analyzers.explorer.contents.decimation import buckets, extremes, means_of_groups
from analyzers.explorer.live.readings import Readings
from analyzers.explorer.views.style import INK, MUTED, RULE, RUN_COLORS, make_figure

HEIGHT: Final = 230

MAX_POINTS: Final = 240
"""Largest number of points of a curve."""

BANDED: Final = ("loss", "ratio", "cosine")
"""Columns that are drawn with the range of the steps of each point."""

NAMES: Final = ("loss", "lr", "ratio", "cosine", "travelled", "lolr", "lolr_stderr")

FIGURES: Final = (
    ("live-loss", "Loss", "of the batches of training", "loss", True),
    ("live-rate", "Rate", "dots: loLR relative to the next anchor", "rate", True),
    ("live-ratio", "Update ratio", "|u| / |x|", "ratio", True),
    ("live-cosine", "Adjacent cosine", "of successive gradients", "cosine", False),
    ("live-travelled", "Distance travelled", "sum of |u|", "distance", False),
)
"""Name, title, note, axis label of the figures, and whether they have a logarithmic axis."""

FACTS: Final = (
    *("status", "step", "total", "epoch", "speed", "left"),
    *("bytes", "free", "travelled", "silent"),
)


class LiveModels:
    """Models of the live section that change with every reading.

    Attributes
    ----------
    curves, facts, alerts, request, job : ColumnDataSource
        Curves by step; the numbers above the figures; alerts; what the page asks for; and
        the state of the computation that it has asked for.
    """

    def __init__(self) -> None:
        names = ["x", *NAMES, *(f"{n}_{end}" for n in BANDED for end in ("min", "max"))]
        self.curves = ColumnDataSource(
            name="live-curves", data={name: [] for name in [*names, "low", "high"]}
        )
        self.facts = ColumnDataSource(
            name="live-facts", data={name: [] for name in FACTS}
        )
        self.alerts = ColumnDataSource(
            name="live-alerts", data={"kind": [], "step": [], "text": []}
        )
        self.request = ColumnDataSource(
            name="live-request", data={"kind": [], "value": [], "id": []}
        )
        self.job = ColumnDataSource(
            name="live-job", data={"text": [], "share": [], "state": [], "target": []}
        )

    @property
    def all(self) -> list[Any]:
        """Every model of the section that no figure draws, and those that are drawn."""
        return [self.curves, self.facts, self.alerts, self.request, self.job]


def live_figures(models: LiveModels) -> list[Any]:
    """Return the figures of the live section."""
    x_range = Range1d(0, 1, name="live-x")
    return [_figure(models.curves, x_range, *facts) for facts in FIGURES]


def _figure(
    source: Any, x_range: Any, name: str, title: str, _: str, y_label: str, is_log: bool
) -> Any:
    made = make_figure(
        name,
        height=HEIGHT,
        x_range=x_range,
        y_range=Range1d(0.1, 1.0, name=f"{name}-y"),
        x_label="step",
        y_label=y_label,
        y_axis_type="log" if is_log else "linear",
    )
    if name != "live-cosine":
        made.yaxis.ticker = FixedTicker(ticks=[], name=f"{name}-ticks")
        made.ygrid.ticker = made.yaxis[0].ticker
    column = {"rate": "lr", "distance": "travelled"}.get(y_label, y_label)
    color = RUN_COLORS[0]
    if column in BANDED:
        made.varea(
            "x",
            f"{column}_min",
            f"{column}_max",
            source=source,
            fill_color=color,
            fill_alpha=0.16,
        )
    if column == "cosine":
        zero = Span(
            level="underlay",
            location=0,
            dimension="width",
            line_color=RULE,
            line_width=1.5,
        )
        limit = Span(
            level="underlay",
            location=-0.5,
            dimension="width",
            line_color=NEGATIVE,
            line_dash=[4, 4],
        )
        made.add_layout(zero)
        made.add_layout(limit)
    if column == "lr":
        made.segment(
            "x", "low", "x", "high", source=source, line_color=MUTED, line_alpha=0.4
        )
        made.scatter("x", "lolr", source=source, color=INK, size=3, alpha=0.6)
    made.line("x", column, source=source, line_color=color, line_width=1.7)
    points = made.scatter(
        "x", column, source=source, color=color, size=5, alpha=0, hover_alpha=1
    )
    rows = [("step", "@x{0,0}"), (title, f"@{column}{{%.4g}}")]
    if column == "lr":
        rows.append(("loLR", "@lolr{%.4g} ± @lolr_stderr{%.2g}"))
    names = [column, "lolr", "lolr_stderr"]
    made.add_tools(
        HoverTool(
            renderers=[points],
            mode="vline",
            tooltips=rows,
            formatters={f"@{n}": "printf" for n in names},
        )
    )
    return made


def live_columns(readings: Readings) -> dict[str, npt.NDArray[np.float32]]:
    """Return the curves of all steps, in at most `MAX_POINTS` points."""
    n = readings.n_steps
    groups = buckets(n, MAX_POINTS)
    labels = np.arange(n) // groups.size
    columns: dict[str, Any] = {}
    with np.errstate(invalid="ignore"):
        columns["x"] = groups.starts + 0.5 * (groups.size - 1)
        for name in NAMES:
            columns[name] = means_of_groups(readings.columns[name], labels)
        for name in BANDED:
            low, high = extremes(readings.columns[name], groups)
            columns[f"{name}_min"], columns[f"{name}_max"] = low, high
        # loLR has no place on a logarithmic axis where it is not positive.
        columns["lolr"] = np.where(columns["lolr"] > 0, columns["lolr"], np.nan)
        columns["low"] = columns["lolr"] - columns["lolr_stderr"]
        columns["high"] = columns["lolr"] + columns["lolr_stderr"]
        columns["low"] = np.where(columns["low"] > 0, columns["low"], np.nan)
    return {name: np.asarray(c, np.float32) for name, c in columns.items()}
