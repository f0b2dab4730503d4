"""Figures: a dataset in, axes out; nothing is computed here."""

from analyzers.plots.aiming import aiming, polyak_lojasiewicz
from analyzers.plots.deep_linear import (
    linear_overview,
    mode_errors,
    mode_trajectories,
)
from analyzers.plots.panels import Curve, Panel, draw_panels
from analyzers.plots.path_geometry import layer_image, overview, quantity
from analyzers.plots.stability import convexity, edge, scale_invariance, smoothness
from analyzers.plots.zigzag import (
    cosine_panel,
    layer_cosines,
    scale_figure,
    share_bars,
    zigzag_overview,
)

__all__ = [
    "Curve",
    "Panel",
    "aiming",
    "convexity",
    "cosine_panel",
    "draw_panels",
    "edge",
    "layer_cosines",
    "layer_image",
    "linear_overview",
    "mode_errors",
    "mode_trajectories",
    "overview",
    "polyak_lojasiewicz",
    "quantity",
    "scale_figure",
    "scale_invariance",
    "share_bars",
    "smoothness",
    "zigzag_overview",
]
