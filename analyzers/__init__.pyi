from . import plots as plots
from ._old_names import scales as scales
from ._old_names import step_bound as step_bound
from .comparison.compare import compare
from .comparison.over_seeds import compare_over_seeds
from .comparison.path_distances import path_distances
from .comparison.path_pca import path_pca
from .conditions.aiming import aiming
from .conditions.alpha_beta import (
    alpha_beta,
    feasible_set,
    largest_alpha,
    margin,
    smallest_beta,
)
from .conditions.polyak_lojasiewicz import polyak_lojasiewicz
from .curvature.convexity import adjacent_convexity, chord_convexity, convexity
from .curvature.edge_of_stability import edge_of_stability, stability_threshold
from .curvature.scale_invariance import scale_invariance
from .curvature.smoothness import smoothness
from .curvature.update_products import update_products
from .deep_linear.arrays import half_time, mode_strength, time_of_steps
from .deep_linear.modes import linear_modes
from .geometry.average_of_epochs import average_of_epochs
from .geometry.distance_travelled import distance_travelled
from .geometry.epoch_means import epoch_means, range_means
from .geometry.mid_run import mid_run
from .geometry.null import excess_gamma, random_walk_gamma
from .geometry.path_geometry import path_geometry
from .geometry.stored import store_geometry
from .geometry.theory import (
    guaranteed_decrease,
    linear_rate,
    locally_optimal_lr,
    step_contraction,
)
from .gradients.branches import compare_branches
from .gradients.lag_curve import lag_curve
from .gradients.lagged_gradients import lagged_gradients
from .gradients.layers import zigzag_layers
from .gradients.segments import zigzag_segments, zigzag_shares
from .gradients.zigzag import zigzag
from .trackers.send import log

__all__ = [
    "adjacent_convexity",
    "aiming",
    "alpha_beta",
    "average_of_epochs",
    "chord_convexity",
    "compare",
    "compare_branches",
    "compare_over_seeds",
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
    "largest_alpha",
    "linear_modes",
    "linear_rate",
    "locally_optimal_lr",
    "log",
    "margin",
    "mid_run",
    "mode_strength",
    "path_distances",
    "path_geometry",
    "path_pca",
    "polyak_lojasiewicz",
    "random_walk_gamma",
    "range_means",
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
