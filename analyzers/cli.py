"""Command line: one sub-command for every analysis."""

import matplotlib as mpl

from analyzers.conditions.aiming_command import aiming, pl
from analyzers.conditions.alpha_beta_command import alpha_beta
from analyzers.curvature.convexity_command import convexity
from analyzers.curvature.invariance_command import invariance
from analyzers.curvature.sharpness_command import sharpness
from analyzers.curvature.smoothness_command import smoothness
from analyzers.deep_linear.command import linear
from analyzers.geometry.command import geometry
from analyzers.gradients.command import compare_branches, zigzag
from analyzers.no_wrong_turns.command import figure, paper
from trajstore.cli.command_line import run_command_line


def main() -> None:
    """Run the command line."""
    mpl.use("agg")
    run_command_line(
        {
            "geometry": geometry,
            "zigzag": zigzag,
            "compare-branches": compare_branches,
            "scales": compare_branches,
            "linear": linear,
            "alpha-beta": alpha_beta,
            "aiming": aiming,
            "pl": pl,
            "smoothness": smoothness,
            "convexity": convexity,
            "sharpness": sharpness,
            "invariance": invariance,
            "figure": figure,
            "paper": paper,
        },
        prog="traj-analyze",
        description="Measure recorded training paths.",
    )


if __name__ == "__main__":
    main()
