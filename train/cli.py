"""Command line ``traj-train``."""

import sys
from importlib import import_module
from typing import Final

from rich.console import Console

from trajstore.cli.command_line import Command, nearest, run_command_line

COMMANDS: Final = {
    "run": Command("train.commands:run", "Train a workload once and record the run."),
    "branch": Command(
        "train.commands:branch",
        "Branch off a run at an epoch with scaled learning rates, and record the branches.",
    ),
    "two-run": Command(
        "train.commands:two_run",
        "Train twice and measure the geometry exactly, as in the published protocol.",
    ),
    "sweep": Command("train.commands:sweep", "Record the missing runs of a sweep."),
    "replay": Command(
        "train.commands:replay",
        "Evaluate the losses of the recorded batches at another point, or losses along the path.",
    ),
    "list": Command("train.commands:list_workloads", "List workloads and sweeps."),
}


def main() -> None:
    """Run the command line."""
    if sys.argv[1:] == ["--list"]:
        Console(stderr=True).print(
            "traj-train: --list is deprecated; use traj-train list.", markup=False
        )
        sys.argv[1:] = ["list"]
    _check_name(sys.argv[1:])
    run_command_line(
        COMMANDS,
        prog="traj-train",
        description="Train workloads, and record or measure the runs.",
    )


def _check_name(arguments: list[str]) -> None:
    """If the workload is unknown, exit with one sentence that names similar workloads."""
    match arguments:
        case ["run" | "two-run", name, *_] if not name.startswith("-"):
            workloads = import_module("train.workloads.known").KNOWN
            if name in workloads:
                return
            Console(stderr=True).print(
                f"traj-train: there is no workload {name!r}"
                f"{nearest(name, workloads)}. See traj-train list.",
                markup=False,
                style="red",
            )
            sys.exit(1)


if __name__ == "__main__":
    main()
