"""Write HTML that shows text from stores as it is, for reprs in notebooks."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trajstore.format.shown import shown

MAX_TEXT: Final = 300
"""Longest text in a cell, in characters; the middle of a longer one is left out."""

MAX_NAMES: Final = 12
"""Largest number of names in a cell."""

WIDTH: Final = 220
HEIGHT: Final = 36
MARGIN: Final = 3
"""Size of a sparkline and of the space around its line, in pixels."""


def text(value: object) -> str:
    """Return text as HTML: printable, escaped, and not longer than `MAX_TEXT`."""
    plain = shown(str(value))
    if len(plain) > MAX_TEXT:
        plain = f"{plain[: MAX_TEXT // 2]} ... {plain[-MAX_TEXT // 2 :]}"
    return html.escape(plain)


def names(values: Sequence[str]) -> str:
    """Return a list of names as plain text, with the number of names that are left out."""
    more = len(values) - MAX_NAMES
    listed = ", ".join(values[:MAX_NAMES]) or "none"
    return f"{listed} and {more} more" if more > 0 else listed


def facts(title: str, rows: Mapping[str, str], *parts: str) -> str:
    """Return a block with a title and a table of plain text, followed by parts in HTML."""
    cell = "text-align:left;padding:1px 12px 1px 0;border:0;background:none"
    body = "".join(
        f'<tr><th style="{cell}">{text(name)}</th><td style="{cell}">{text(value)}</td></tr>'
        for name, value in rows.items()
    )
    table = f'<table style="border:0;margin:4px 0"><tbody>{body}</tbody></table>'
    return f"<div><strong>{text(title)}</strong>{table}{''.join(parts)}</div>"


def sparkline(name: str, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> str:
    """Return a small line of y against x, both (point,), as SVG; empty without two values."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = np.asarray(x[known], np.float64), np.asarray(y[known], np.float64)
    if len(y) < 2:
        return ""
    left = MARGIN + (WIDTH - 2 * MARGIN) * _unit(x)
    top = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * _unit(y)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(left, top, strict=True))
    label = text(
        f"{name}: {y[0]:.4g} at step {x[0]:.0f}, {y[-1]:.4g} at step {x[-1]:.0f}"
    )
    return (
        f'<div><svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{label}">'
        f'<polyline points="{points}" fill="none" stroke="#0072B2" stroke-width="1.2"/>'
        f"</svg> <small>{label}</small></div>"
    )


def _unit(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scale values to the range from 0 to 1; equal values become 0.5."""
    # Halving first keeps the range of huge values finite.
    low, high = values.min() / 2, values.max() / 2
    if high == low:
        return np.full(len(values), 0.5)
    scaled: npt.NDArray[np.float64] = (values / 2 - low) / (high - low)
    return scaled
