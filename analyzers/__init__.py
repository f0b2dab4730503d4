"""Analyses of recorded training runs.

Each analysis takes a run and returns a labelled dataset, which `plots` can draw. Begin with
`path_geometry`, which measures every step against a target. Each topic is a package:
`geometry`, `gradients` (zigzag, lags, branches), `conditions` (alpha-beta, aiming,
Polyak-Lojasiewicz), `curvature`, `deep_linear`, and `no_wrong_turns`, which reproduces the
figures and tests the statements of one paper. In a topic, `arrays` holds functions of
arrays, `plots` draws figures, and `command` or `commands` defines sub-commands of
``traj-analyze``. All topics build on `_engine`, which walks a run window by window in Dask
tasks, and on `_execution`, which computes and stores results. This package reads runs
through `trajstore` and never imports torch.
"""

from analyzers._renamed import renamed
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
    step_contraction,
)
from analyzers.gradients.branches import compare_branches
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
    "smallest_beta",
    "smoothness",
    "stability_threshold",
    "step_contraction",
    "store_geometry",
    "time_of_steps",
    "update_products",
    "zigzag",
    "zigzag_layers",
    "zigzag_segments",
    "zigzag_shares",
]

# Deprecated names.
scales = renamed(compare_branches, "analyzers.scales")
step_bound = renamed(step_contraction, "analyzers.step_bound")
