"""Figures of all analyses, drawn from their results without further analysis."""

from analyzers._panels import Curve, Panel, draw_panels
from analyzers._renamed import renamed
from analyzers.conditions.plots import aiming, alpha_beta, polyak_lojasiewicz
from analyzers.curvature.plots import (
    convexity,
    edge_of_stability,
    scale_invariance,
    smoothness,
)
from analyzers.deep_linear.plots import linear_modes, mode_errors, mode_trajectories
from analyzers.geometry.plots import layer_image, path_geometry, quantity
from analyzers.gradients.plots import (
    compare_branches,
    cosine_panel,
    layer_cosines,
    share_bars,
    zigzag,
)

__all__ = [
    "Curve",
    "Panel",
    "aiming",
    "alpha_beta",
    "compare_branches",
    "convexity",
    "cosine_panel",
    "draw_panels",
    "edge_of_stability",
    "layer_cosines",
    "layer_image",
    "linear_modes",
    "mode_errors",
    "mode_trajectories",
    "path_geometry",
    "polyak_lojasiewicz",
    "quantity",
    "scale_invariance",
    "share_bars",
    "smoothness",
    "zigzag",
]

# Deprecated names.
edge = renamed(edge_of_stability, "analyzers.plots.edge")
linear_overview = renamed(linear_modes, "analyzers.plots.linear_overview")
overview = renamed(path_geometry, "analyzers.plots.overview")
scale_figure = renamed(compare_branches, "analyzers.plots.scale_figure")
zigzag_overview = renamed(zigzag, "analyzers.plots.zigzag_overview")
