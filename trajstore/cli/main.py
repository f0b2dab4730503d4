"""Command line ``traj-store``."""

from typing import Final

from trajstore.cli.command_line import Command, run_command_line

COMMANDS: Final = {
    "info": Command(
        "trajstore.cli.stores:info",
        "Show the contents, the size and the status of a store.",
    ),
    "verify": Command(
        "trajstore.cli.stores:verify",
        "Read every chunk of a store, and list the damage and the data lost with it.",
    ),
    "recover": Command(
        "trajstore.cli.stores:recover",
        "Write to the store the steps that only the journal holds.",
    ),
    "watch": Command(
        # The page needs the packages of the extra `analyze`; this name is all that
        # trajstore knows of it.
        "analyzers.explorer.live.command:watch",
        "Follow a run that is being recorded: a page on this machine, and alerts.",
    ),
    "plan": Command(
        "trajstore.cli.plan:plan",
        "Predict the disk space, the memory and the error of a recording.",
    ),
}


def main() -> None:
    """Run the command line."""
    run_command_line(
        COMMANDS,
        prog="traj-store",
        description="Inspect, verify, recover and plan trajectory stores.",
    )


if __name__ == "__main__":
    main()
