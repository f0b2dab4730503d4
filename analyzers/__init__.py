"""Analyses of recorded training runs: a run in, labelled datasets and figures out.

Begin with `path_geometry`, which measures every step against a target, and `plots`. Topics
are packages: `geometry`, `gradients` (zigzag, lags, branches), `conditions` (alpha-beta,
aiming, Polyak-Lojasiewicz), `curvature`, `deep_linear`, and `no_wrong_turns`, the figures
and statements of one paper. In a topic, array functions lie in `arrays`, figures in
`plots`, and sub-commands of ``traj-analyze`` in `command`. All topics rest on `_engine`,
which walks a run window by window in Dask tasks, and on `_execution`, which computes and
stores results. This package reads runs through `trajstore` and never imports torch.
"""

from analyzers.conditions.aiming import aiming
from analyzers.conditions.alpha_beta import (
    alpha_beta,
    feasible_set,
    margin,
    smallest_beta,
)
from analyzers.conditions.polyak_lojasiewicz import polyak_lojasiewicz
from analyzers.curvature.convexity import adjacent_convexity, chord_convexity, convexity
from analyzers.curvature.edge_of_stability import edge_of_stability, stability_threshold
from analyzers.curvature.scale_invariance import scale_invariance
from analyzers.curvature.smoothness import smoothness
from analyzers.curvature.update_products import update_products
from analyzers.deep_linear.arrays import half_time, mode_strength, time_of_steps
from analyzers.deep_linear.modes import linear_modes
from analyzers.geometry.average_of_epochs import average_of_epochs
from analyzers.geometry.distance_travelled import distance_travelled
from analyzers.geometry.epoch_means import epoch_means
from analyzers.geometry.null import excess_gamma, random_walk_gamma
from analyzers.geometry.path_geometry import path_geometry
from analyzers.geometry.stored import store_geometry
from analyzers.geometry.theory import (
    guaranteed_decrease,
    linear_rate,
    locally_optimal_lr,
    step_bound,
    step_contraction,
)
from analyzers.gradients.branches import compare_branches, scales
from analyzers.gradients.lag_curve import lag_curve
from analyzers.gradients.lagged_gradients import lagged_gradients
from analyzers.gradients.layers import zigzag_layers
from analyzers.gradients.segments import zigzag_segments, zigzag_shares
from analyzers.gradients.zigzag import zigzag

__all__ = [
    "adjacent_convexity",
    "aiming",
    "alpha_beta",
    "average_of_epochs",
    "chord_convexity",
    "compare_branches",
    "convexity",
    "distance_travelled",
    "edge_of_stability",
    "epoch_means",
    "excess_gamma",
    "feasible_set",
    "guaranteed_decrease",
    "half_time",
    "lag_curve",
    "lagged_gradients",
    "linear_modes",
    "linear_rate",
    "locally_optimal_lr",
    "margin",
    "mode_strength",
    "path_geometry",
    "polyak_lojasiewicz",
    "random_walk_gamma",
    "scale_invariance",
    "scales",
    "smallest_beta",
    "smoothness",
    "stability_threshold",
    "step_bound",
    "step_contraction",
    "store_geometry",
    "time_of_steps",
    "update_products",
    "zigzag",
    "zigzag_layers",
    "zigzag_segments",
    "zigzag_shares",
]
