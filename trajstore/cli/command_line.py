"""What the console scripts share: sub-commands, and errors in one sentence."""

import sys
from collections.abc import Callable
from typing import Any

import tyro
from rich.console import Console


def run_command_line(
    commands: dict[str, Callable[..., None]], *, prog: str, description: str
) -> None:
    """Run the sub-command that the arguments of the process name.

    Errors that a user can act on are printed without a traceback, and end the process
    with status 1.

    Parameters
    ----------
    commands : dict from str to callable
        The sub-commands; their signatures and docstrings define the arguments.
    prog : str
        Name of the script.
    description : str
        What it is for.
    """
    config: tuple[Any, ...] = (
        tyro.conf.CascadeSubcommandArgs,
        tyro.conf.OmitSubcommandPrefixes,
        tyro.conf.OmitArgPrefixes,
    )
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands, prog=prog, description=description, config=config
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        # The text of a KeyError is quoted by str().
        text = error.args[0] if isinstance(error, KeyError) else error
        console = Console(stderr=True, emoji=False)
        console.print(f"{prog}: {text}", markup=False, style="red")
        sys.exit(1)
