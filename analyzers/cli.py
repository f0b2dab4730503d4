"""Command line ``traj-analyze``: one sub-command for each analysis."""

import sys
from collections.abc import Callable
from typing import Final

import matplotlib as mpl

from analyzers._reporting import say
from analyzers.conditions.commands import aiming, alpha_beta, polyak_lojasiewicz
from analyzers.curvature.commands import (
    convexity,
    edge_of_stability,
    scale_invariance,
    smoothness,
)
from analyzers.deep_linear.command import linear_modes
from analyzers.geometry.command import geometry
from analyzers.gradients.command import compare_branches, zigzag
from analyzers.no_wrong_turns.command import figure, paper
from trajstore.cli.command_line import run_command_line

COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "geometry": geometry,
    "zigzag": zigzag,
    "compare-branches": compare_branches,
    "linear-modes": linear_modes,
    "alpha-beta": alpha_beta,
    "aiming": aiming,
    "polyak-lojasiewicz": polyak_lojasiewicz,
    "smoothness": smoothness,
    "convexity": convexity,
    "edge-of-stability": edge_of_stability,
    "scale-invariance": scale_invariance,
    "figure": figure,
    "paper": paper,
}

OLD_NAMES: Final = {
    "scales": "compare-branches",
    "linear": "linear-modes",
    "pl": "polyak-lojasiewicz",
    "sharpness": "edge-of-stability",
    "invariance": "scale-invariance",
}
"""Current names of commands by deprecated name; the help omits deprecated names."""

SYNONYMS: Final = {"path-geometry": "geometry"}
"""Names of commands by the name of the public function, where the names differ."""


def main() -> None:
    """Run the command line."""
    mpl.use("agg")
    sys.argv[1:2] = [_current_name(argument) for argument in sys.argv[1:2]]
    run_command_line(
        COMMANDS, prog="traj-analyze", description="Measure recorded training paths."
    )


def _current_name(command: str) -> str:
    """Return the current name of a command, with a notice on stderr for a deprecated name."""
    if command in OLD_NAMES:
        say(
            f"traj-analyze: {command!r} is deprecated; use {OLD_NAMES[command]!r}.",
            stderr=True,
        )
    return (OLD_NAMES | SYNONYMS).get(command, command)


if __name__ == "__main__":
    main()
