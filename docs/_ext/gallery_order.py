"""The order of the gallery."""

ORDER = (
    "plot_one_recording.py",
    "plot_geometry.py",
    "plot_comparison.py",
    "plot_zigzag.py",
    "plot_curvature.py",
    "plot_conditions.py",
    "plot_deep_linear.py",
)


class GalleryOrder:
    """Sort key of the files of the gallery."""

    def __init__(self, folder: str) -> None:
        pass

    def __call__(self, name: str) -> int:
        return ORDER.index(name)
