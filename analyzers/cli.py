"""Command line ``traj-analyze``: one sub-command for each analysis."""

import os
import sys
from typing import Final

from rich.console import Console

from trajstore.cli.command_line import Command, run_command_line

COMMANDS: Final = {
    "geometry": Command(
        "analyzers.geometry.command:geometry",
        "Measure RSI, EB and gamma of every step, with error bars, relative to a target.",
    ),
    "explore": Command(
        "analyzers.explorer.command:explore",
        "Write one HTML page that shows runs: path, geometry, layers, comparison, conditions.",
    ),
    "watch": Command(
        "analyzers.explorer.live.command:watch",
        "Follow a run that is being recorded: a page on this machine, and alerts.",
    ),
    "compare": Command(
        "analyzers.comparison.command:compare",
        "Compare the geometry of several runs, with the settings in which they differ.",
    ),
    "zigzag": Command(
        "analyzers.gradients.command:zigzag",
        "Find where a run zigzags, from the cosines of adjacent gradients.",
    ),
    "compare-branches": Command(
        "analyzers.gradients.command:compare_branches",
        "Compare the zigzags of a run and of its branches, which have other learning rates.",
    ),
    "linear-modes": Command(
        "analyzers.deep_linear.command:linear_modes",
        "Singular modes of a deep linear network, compared with their closed form.",
    ),
    "alpha-beta": Command(
        "analyzers.conditions.commands:alpha_beta",
        "Pairs (alpha, beta) for which the alpha-beta condition holds at every step.",
    ),
    "aiming": Command(
        "analyzers.conditions.commands:aiming",
        "Angle between the gradient and x - x*, and theta of the aiming condition.",
    ),
    "polyak-lojasiewicz": Command(
        "analyzers.conditions.commands:polyak_lojasiewicz",
        "Constants mu of the Polyak-Lojasiewicz condition that the steps of a run allow.",
    ),
    "smoothness": Command(
        "analyzers.curvature.commands:smoothness",
        "Change of the gradient divided by the change of the parameters, by step.",
    ),
    "convexity": Command(
        "analyzers.curvature.commands:convexity",
        "Slack of convexity: the loss at the target minus the tangents at the iterates.",
    ),
    "edge-of-stability": Command(
        "analyzers.curvature.commands:edge_of_stability",
        "Ratio of the largest Hessian eigenvalue to the stability threshold of the optimizer.",
    ),
    "scale-invariance": Command(
        "analyzers.curvature.commands:scale_invariance",
        "Cosine of every layer and its gradient, to find layers whose scale has no effect.",
    ),
    "losses": Command(
        "analyzers.comparison.losses_command:losses",
        "Draw the losses on lines to a target and on the plane of a path.",
    ),
    "log": Command(
        "analyzers.trackers.command:log",
        "Send steps, stored geometry, figures and the explorer page of a run to a tracker.",
    ),
    "figure": Command(
        "analyzers.no_wrong_turns.command:figure",
        'Draw a figure of "No Wrong Turns" from recorded runs.',
    ),
    "optimizers": Command(
        "analyzers.optimizer_page.command:optimizers",
        "Compare optimizers by geometry, conditions and sharpness, and test statements.",
    ),
    "paper": Command(
        "analyzers.no_wrong_turns.command:paper",
        'Draw the figures of "No Wrong Turns" from recorded runs, and test its statements.',
    ),
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
    os.environ["MPLBACKEND"] = "agg"  # importing matplotlib here would delay the help
    sys.argv[1:2] = [_current_name(argument) for argument in sys.argv[1:2]]
    run_command_line(
        COMMANDS, prog="traj-analyze", description="Measure recorded training paths."
    )


def _current_name(command: str) -> str:
    """Return the current name of a command, with a notice on stderr for a deprecated name."""
    if command in OLD_NAMES:
        Console(stderr=True, markup=False, highlight=False).print(
            f"traj-analyze: {command!r} is deprecated; use {OLD_NAMES[command]!r}."
        )
    return (OLD_NAMES | SYNONYMS).get(command, command)


if __name__ == "__main__":
    main()
