"""Figures: a dataset in, axes out; nothing is computed here."""

from analyzers.plots.path_geometry import layer_image, overview, quantity

__all__ = ["layer_image", "overview", "quantity"]
