"""Run a subcommand of a console script, and print errors without a traceback."""

import sys
from collections.abc import Callable
from typing import Any

import tyro
from rich.console import Console


def run_command_line(
    commands: dict[str, Callable[..., None]], *, prog: str, description: str
) -> None:
    """Run the subcommand named in the arguments of the process."""
    # Signatures and docstrings of `commands` define the arguments. Errors that a user can
    # act on are printed without a traceback, and the process ends with status 1.
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
        # str() quotes the text of a KeyError.
        text = error.args[0] if isinstance(error, KeyError) else error
        console = Console(stderr=True, emoji=False)
        # Without line breaks, paths and commands in the text can be copied.
        console.print(f"{prog}: {text}", markup=False, soft_wrap=True, style="red")
        sys.exit(1)
