"""Figures of all analyses: a dataset in, axes or a figure out; nothing is computed."""

from analyzers._panels import Curve, Panel, draw_panels
from analyzers.conditions.plots import aiming, alpha_beta, polyak_lojasiewicz
from analyzers.curvature.plots import (
    convexity,
    edge,
    edge_of_stability,
    scale_invariance,
    smoothness,
)
from analyzers.deep_linear.plots import (
    linear_modes,
    linear_overview,
    mode_errors,
    mode_trajectories,
)
from analyzers.geometry.plots import layer_image, overview, path_geometry, quantity
from analyzers.gradients.plots import (
    compare_branches,
    cosine_panel,
    layer_cosines,
    scale_figure,
    share_bars,
    zigzag,
    zigzag_overview,
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
    "edge",
    "edge_of_stability",
    "layer_cosines",
    "layer_image",
    "linear_modes",
    "linear_overview",
    "mode_errors",
    "mode_trajectories",
    "overview",
    "path_geometry",
    "polyak_lojasiewicz",
    "quantity",
    "scale_figure",
    "scale_invariance",
    "share_bars",
    "smoothness",
    "zigzag",
    "zigzag_overview",
]
