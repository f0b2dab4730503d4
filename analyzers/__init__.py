"""Measures of a recorded training path: datasets in, datasets and figures out."""

from analyzers.epoch_means import epoch_means
from analyzers.lagged_gradients import lagged_gradients
from analyzers.path_geometry import path_geometry
from analyzers.results import store_geometry

__all__ = ["epoch_means", "lagged_gradients", "path_geometry", "store_geometry"]
