"""Command line: one sub-command for every analysis."""

from analyzers.commands.aiming import aiming, pl
from analyzers.commands.alpha_beta import alpha_beta
from analyzers.commands.geometry import geometry
from analyzers.commands.linear import linear
from analyzers.commands.paper import figure, paper
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
            "figure": figure,
            "paper": paper,
        },
        prog="traj-analyze",
        description="Measure recorded training paths.",
    )


if __name__ == "__main__":
    main()
