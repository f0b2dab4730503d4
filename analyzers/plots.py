"""Figures of all analyses, drawn from their results without further analysis.

A function has the name of the analysis whose result it draws; other names say what the axes
show. Functions that draw on one pair of axes take ``ax=``, ``color=`` and ``label=``, and
return the axes. Functions that draw several return one figure.
"""

from analyzers._panels import Curve, Panel, draw_panels
from analyzers._renamed import renamed
from analyzers.comparison.plots import (
    compare,
    losses_on_plane,
    losses_towards,
    path_distances,
    path_pca,
)
from analyzers.conditions.plots import (
    aiming,
    alpha_beta,
    condition_of_steps,
    feasible_set,
    polyak_lojasiewicz,
)
from analyzers.curvature.plots import (
    convexity,
    edge_of_stability,
    scale_invariance,
    smoothness,
)
from analyzers.deep_linear.plots import linear_modes, mode_errors, mode_trajectories
from analyzers.geometry.plots import epoch_means, layer_means, path_geometry
from analyzers.gradients.plots import (
    compare_branches,
    lag_curve,
    segment_losses,
    segment_shares,
    zigzag,
    zigzag_layers,
    zigzag_segments,
)

__all__ = [
    "Curve",
    "Panel",
    "aiming",
    "alpha_beta",
    "compare",
    "compare_branches",
    "condition_of_steps",
    "convexity",
    "draw_panels",
    "edge_of_stability",
    "epoch_means",
    "feasible_set",
    "lag_curve",
    "layer_means",
    "linear_modes",
    "losses_on_plane",
    "losses_towards",
    "mode_errors",
    "mode_trajectories",
    "path_distances",
    "path_geometry",
    "path_pca",
    "polyak_lojasiewicz",
    "scale_invariance",
    "segment_losses",
    "segment_shares",
    "smoothness",
    "zigzag",
    "zigzag_layers",
    "zigzag_segments",
]

# Deprecated names.
cosine_panel = renamed(zigzag_segments, "analyzers.plots.cosine_panel")
edge = renamed(edge_of_stability, "analyzers.plots.edge")
layer_cosines = renamed(zigzag_layers, "analyzers.plots.layer_cosines")
layer_image = renamed(layer_means, "analyzers.plots.layer_image")
linear_overview = renamed(linear_modes, "analyzers.plots.linear_overview")
overview = renamed(path_geometry, "analyzers.plots.overview")
quantity = renamed(epoch_means, "analyzers.plots.quantity")
scale_figure = renamed(compare_branches, "analyzers.plots.scale_figure")
share_bars = renamed(segment_shares, "analyzers.plots.share_bars")
zigzag_overview = renamed(zigzag, "analyzers.plots.zigzag_overview")
