from .command_figures import convexity_figure, smoothness_figure

__all__ = [
    "convexity_figure",
    "smoothness_figure",
]
