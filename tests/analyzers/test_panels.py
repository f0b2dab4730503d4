"""Test ``analyzers._panels``."""

from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection

from analyzers._colors import COLORS
from analyzers.plots import Curve, Panel, draw_panels


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def curve(label: str = "a", **fields: Any) -> Curve:
    x = np.arange(5)
    y = np.array([1.0, 2.0, 3.0, 2.0, 1.5])
    return Curve(label, x, y, np.full(5, 0.2), y - 0.5, y + 0.7)._replace(**fields)


def panel(*curves: Curve, **fields: Any) -> Panel:
    given = {"title": "t", "ylabel": "y", "needs": "two runs"} | fields
    return Panel(curves=curves, **given)


def drawn(content: Panel) -> Axes:
    [ax] = draw_panels([content], n_columns=1).axes
    return ax


def test_line_band_and_bars_show_the_curve():
    ax = drawn(panel(curve()))
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), curve().y)
    [band] = [c for c in ax.collections if isinstance(c, PolyCollection)]
    ends = np.asarray(band.get_paths()[0].vertices)
    assert (ends[:, 1].min(), ends[:, 1].max()) == pytest.approx((0.5, 3.7))
    [bars] = [c for c in ax.collections if isinstance(c, LineCollection)]
    np.testing.assert_allclose(
        [segment[:, 1] for segment in bars.get_segments()],
        np.stack([curve().y - 0.2, curve().y + 0.2], 1),
    )


def test_titles_and_labels_are_drawn():
    ax = drawn(panel(curve("a"), curve("b"), title="title", xlabel="step"))
    assert (ax.get_title(), ax.get_ylabel(), ax.get_xlabel()) == ("title", "y", "step")
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert drawn(panel(curve(""))).get_legend() is None


def test_order_is_shown_by_colours():
    def colors(*, is_ordered: bool) -> list[Any]:
        ax = drawn(panel(*(curve(c) for c in "abc"), is_ordered=is_ordered))
        return [line.get_color() for line in ax.lines]

    assert colors(is_ordered=False) == list(COLORS[:3])
    assert not set(map(str, colors(is_ordered=True))) & set(COLORS[:3])


def test_limits_hold_bands_and_the_legend():
    ax = drawn(panel(*(curve(c) for c in "abcd")))
    low, high = ax.get_ylim()
    assert low == 0
    assert 3.7 * 1.15 < high < 3.7 * 1.5


def test_bands_far_wider_than_the_lines_are_cut():
    spike = curve(high=np.array([2.0, 2.0, 90.0, 2.0, 2.0]))
    low, high = drawn(panel(spike)).get_ylim()
    assert low == 0
    assert high == pytest.approx(2 * 3 * 1.17, rel=0.02)


def test_negative_values_are_shown_and_zero_is_marked():
    ax = drawn(panel(curve(y=np.array([1.0, -2.0, 1.0, 1.0, 1.0]), low=None)))
    assert ax.get_ylim()[0] < -2
    assert any(np.all(np.asarray(line.get_ydata()) == 0) for line in ax.lines)


def test_outermost_values_do_not_set_robust_limits():
    y = np.ones(200)
    y[7] = 1000
    spike = Curve("", np.arange(200), y)
    assert drawn(panel(spike, is_robust=True)).get_ylim()[1] < 2
    assert drawn(panel(spike)).get_ylim()[1] > 1000


def test_missing_values_leave_gaps():
    ax = drawn(panel(curve(y=np.array([1.0, np.nan, 3.0, 1.0, np.inf]))))
    assert np.isfinite(ax.get_ylim()).all()
    ax.figure.canvas.draw()
    drawn(panel(curve(y=np.full(5, np.nan)))).figure.canvas.draw()


def test_panel_without_curves_says_what_it_needs():
    ax = drawn(panel())
    assert [text.get_text() for text in ax.texts] == ["needs two runs"]
    ax.figure.canvas.draw()


def test_unused_axes_are_hidden():
    figure = draw_panels([panel(curve())] * 3, n_columns=2)
    assert len(figure.axes) == 4
    assert [ax.axison for ax in figure.axes] == [True, True, True, False]
    assert len(draw_panels([panel(curve())], n_columns=3).axes) == 1
