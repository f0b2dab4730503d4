"""Command line: one sub-command for every analysis."""

import matplotlib as mpl

from analyzers.conditions.commands import aiming, alpha_beta, polyak_lojasiewicz
from analyzers.curvature.commands import (
    convexity,
    edge_of_stability,
    scale_invariance,
    smoothness,
)
from analyzers.deep_linear.command import linear_modes
from analyzers.geometry.command import geometry
from analyzers.gradients.command import scales, zigzag
from analyzers.no_wrong_turns.command import figure, paper
from trajstore.cli.command_line import run_command_line


def main() -> None:
    """Run the command line."""
    mpl.use("agg")
    run_command_line(
        {
            "geometry": geometry,
            "zigzag": zigzag,
            "scales": scales,
            "linear-modes": linear_modes,
            "linear": linear_modes,
            "alpha-beta": alpha_beta,
            "aiming": aiming,
            "polyak-lojasiewicz": polyak_lojasiewicz,
            "pl": polyak_lojasiewicz,
            "smoothness": smoothness,
            "convexity": convexity,
            "edge-of-stability": edge_of_stability,
            "sharpness": edge_of_stability,
            "scale-invariance": scale_invariance,
            "invariance": scale_invariance,
            "figure": figure,
            "paper": paper,
        },
        prog="traj-analyze",
        description="Measure recorded training paths.",
    )


if __name__ == "__main__":
    main()
