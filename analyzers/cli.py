"""Command line: one sub-command for every analysis."""

from analyzers.commands.aiming import aiming, pl
from analyzers.commands.alpha_beta import alpha_beta
from analyzers.commands.convexity import convexity
from analyzers.commands.geometry import geometry
from analyzers.commands.invariance import invariance
from analyzers.commands.linear import linear
from analyzers.commands.paper import figure, paper
from analyzers.commands.sharpness import sharpness
from analyzers.commands.smoothness import smoothness
from analyzers.commands.zigzag import scales, zigzag
from trajstore.command_line import run_command_line


def main() -> None:
    """Run the command line."""
    run_command_line(
        {
            "geometry": geometry,
            "zigzag": zigzag,
            "scales": scales,
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
