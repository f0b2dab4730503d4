"""Run a subcommand of a console script, and print errors without a traceback."""

import re
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from inspect import Parameter, signature
from typing import Any, Final, NamedTuple, NoReturn

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trajstore._version import __version__
from trajstore.cli.completion import completion_script
from trajstore.cli.console import make_console, printed_warnings
from trajstore.cli.help_text import prepared, wrapped_help

USAGE_ERROR: Final = 2
"""Exit status after wrong arguments, as argparse uses it."""

EXTRAS: Final = {
    "analyze": (
        "bokeh",
        "dask",
        "distributed",
        "h5netcdf",
        "llvmlite",
        "matplotlib",
        "numba",
        "scipy",
    ),
    "train": ("sklearn", "torch", "llvmlite", "numba", "scipy"),
    "remote": ("fsspec", "obstore"),
    "data": ("datasets", "PIL"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}
"""Modules that each extra of the distribution installs."""


class Command(NamedTuple):
    """A subcommand; its module is imported only when the command runs."""

    target: str  # "module:function"; signature and docstring define the arguments
    summary: str


def run_command_line(
    commands: Mapping[str, Command], *, prog: str, description: str
) -> None:
    """Run the subcommand named in the arguments of the process."""
    # Errors that a user can act on are printed without a traceback, and the status is 1.
    match sys.argv[1:]:
        case []:
            _print_help(commands, prog, description)
            sys.exit(USAGE_ERROR)
        case ["-h" | "--help", *_]:
            _print_help(commands, prog, description)
            sys.exit(0)
        case ["--version", *_]:
            Console().print(f"trajstore {__version__}", highlight=False)
            sys.exit(0)
        case ["--completion", *_]:
            helps = {
                name: partial(_run, command, f"{prog} {name}", prog, ["--help"])
                for name, command in commands.items()
            }
            sys.stdout.write(completion_script(prog, helps))
        case [name, *_] if name not in commands:
            near = nearest(name, commands)
            _fail(
                f"{prog}: there is no command {name!r}{near}. See {prog} --help.",
                USAGE_ERROR,
            )
        case [name, *arguments]:
            _run(commands[name], f"{prog} {name}", prog, arguments)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that lists the known names nearest to an unknown name."""
    matches = get_close_matches(name, list(known), cutoff=0.4)
    return f"; the nearest are {', '.join(matches)}" if matches else ""


def _run(command: Command, prog: str, script: str, arguments: list[str]) -> None:
    config: tuple[Any, ...] = (
        tyro.conf.CascadeSubcommandArgs,
        tyro.conf.OmitSubcommandPrefixes,
        tyro.conf.OmitArgPrefixes,
        tyro.conf.FlagCreatePairsOff,
    )
    function: Any = None
    try:
        module, _, name = command.target.partition(":")
        function = getattr(import_module(module), name)
        runnable = prepared(function)
        with printed_warnings(), wrapped_help(arguments):
            tyro.cli(
                runnable,
                prog=prog,
                args=arguments,
                config=config,
            )
    except ModuleNotFoundError as error:
        _fail(f"{script}: {_missing(error, script)}", 1)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        # str() quotes the text of a KeyError.
        text = error.args[0] if isinstance(error, KeyError) else error
        _fail(f"{script}: {with_options(str(text), function)}", 1)


def with_options(text: str, function: Any) -> str:
    """Replace the arguments of a command's function by the command's options in a message."""
    # Arguments are named as `name` or name=value; a call such as f(name=value) stays.
    parameters = {} if function is None else signature(function).parameters
    for name, parameter in parameters.items():
        if parameter.kind == Parameter.KEYWORD_ONLY:
            option = f"--{name.replace('_', '-')}"
            text = re.sub(rf"`{name}`|(?<!\S)`{name}=`", option, text)
            text = re.sub(rf"(?<![^\s`]){name}=(?=[^\s=])", f"{option} ", text)
            text = re.sub(rf'{option} "([\w:.-]+)"', rf"{option} \1", text)
    return text


def _missing(error: ModuleNotFoundError, script: str) -> str:
    """Say which extra installs a missing module; raise the error again if none does."""
    if "pip install" in str(error):
        return str(error)
    top = (error.name or "").partition(".")[0]
    # Several extras install SciPy; the one that is named like the script installs the rest, too.
    for extra in sorted(EXTRAS, key=lambda extra: not script.endswith(extra)):
        if top in EXTRAS[extra]:
            return (
                f"this command needs the package {top}, which is not installed. Run\n"
                f'pip install "trajstore[{extra}]"'
            )
    raise error


def _print_help(commands: Mapping[str, Command], prog: str, description: str) -> None:
    console = Console(highlight=False)
    console.print(f"usage: {prog} COMMAND ...\n\n{description}\n", markup=False)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, command in commands.items():
        table.add_row(name, Text(command.summary))
    console.print(table)
    console.print(
        f"\n{prog} COMMAND --help describes a command; {prog} --completion prints a script\n"
        "for bash and zsh.",
        markup=False,
    )


def _fail(text: str, status: int) -> NoReturn:
    # Without line breaks, paths and commands in the text can be copied.
    make_console(stderr=True).print(text, soft_wrap=True, style="red")
    sys.exit(status)
