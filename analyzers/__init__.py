"""Measures of a recorded training path: datasets in, datasets and figures out."""

from analyzers.epoch_means import epoch_means
from analyzers.path_geometry import path_geometry

__all__ = ["epoch_means", "path_geometry"]
