"""Save figures in the folder from which the documentation shows them."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

IMAGES = Path(__file__).parent.parent / "docs" / "images"


def save_figure(figure: Figure, name: str, *, dpi: int = 100) -> None:
    """Write a figure below ``docs/images``, and close all figures."""
    file = IMAGES / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=dpi)
    plt.close("all")
