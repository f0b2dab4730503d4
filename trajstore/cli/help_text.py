"""Prepare a command for the command line: common options, and help in plain words."""

import inspect
import io
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from inspect import Parameter
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Final, Literal, get_args, get_origin, get_type_hints

import tyro
from rich.console import Console

from trajstore.cli.console import QUIET

METAVARS: Final = {
    "store": "RUN",
    "name": "NAME",
    "parent": "RUN",
    "branches": "RUN [RUN ...]",
    "by": "NAME [NAME ...]",
    "reference": "TARGET",
    "measurement": "NAME",
    "scheduler": "ADDRESS",
    "model": "MODULE:FACTORY",
    "disk": "SIZE",
    "data_dir": "DIR",
}
"""Names of values in the help, by the name of the parameter."""

TYPES: Final = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}

QUIET_HELP: Final = "Print only warnings and errors, and no progress."

SECTION: Final = re.compile(r"^(\w[\w ]*)\n-{3,}\n", re.MULTILINE)


def prepared(function: Callable[..., None]) -> Callable[..., None]:
    """Return the function of a command with the option ``--quiet`` and a clearer help."""
    first, *rest = SECTION.split(inspect.getdoc(function) or "")
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    hints = get_type_hints(function, include_extras=True)
    parameters = [
        parameter.replace(annotation=_described(parameter, hints[name]))
        for name, parameter in inspect.signature(function).parameters.items()
    ]
    quiet_option = Parameter("quiet", Parameter.KEYWORD_ONLY, default=False)
    parameters.append(quiet_option.replace(annotation=_described(quiet_option, bool)))

    def command(*arguments: Any, quiet: bool = False, **options: Any) -> None:
        QUIET.set(quiet)
        function(*arguments, **options)

    vars(command)["__signature__"] = inspect.Signature(parameters)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = (
        f"{first}\nParameters\n----------\n"
        f"{_one_line_each(sections.get('Parameters', ''))}\n"
        f"quiet : bool, default: False\n    {QUIET_HELP}\n"
    )
    return command


def _described(parameter: Parameter, annotation: Any) -> Any:
    """Return the annotation of a parameter, with what the help says of its values."""
    if parameter.default is False:
        return Annotated[annotation, tyro.conf.arg(help_behavior_hint="")]
    if parameter.default is None:
        metavar = METAVARS.get(parameter.name, _metavar(annotation))
        hint = tyro.conf.arg(metavar=metavar, help_behavior_hint="")
        return Annotated[annotation, hint]
    if parameter.name == "stores":
        metavar = "DIR" if annotation is Path else "RUN [RUN ...]"
        return Annotated[annotation, _argument(parameter, metavar)]
    if parameter.name in METAVARS:
        return Annotated[annotation, _argument(parameter, METAVARS[parameter.name])]
    return annotation


def _argument(parameter: Parameter, metavar: str) -> Any:
    """Return what tyro is told of an argument with values of a given name."""
    if "[" in metavar and parameter.default is Parameter.empty:
        # tyro would call an empty list the default.
        return tyro.conf.arg(metavar=metavar, help_behavior_hint="(required)")
    return tyro.conf.arg(metavar=metavar)


def _metavar(annotation: Any) -> str:
    """Return the name of the values of a type, leaving out None."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        return "{" + ",".join(map(str, get_args(annotation))) + "}"
    if get_origin(annotation) is tuple:
        name = _metavar(get_args(annotation)[0])
        return f"{name} [{name} ...]"
    if annotation in TYPES:
        return TYPES[annotation]
    [kind] = [kind for kind in get_args(annotation) if kind is not NoneType]
    return _metavar(kind)


def _one_line_each(section: str) -> str:
    """Join the lines of every parameter's description; line breaks would stay in the help."""
    joined: list[str] = []
    for line in section.splitlines():
        follows = joined and joined[-1].startswith("    ") and line.startswith("    ")
        if follows:
            joined[-1] += f" {line.strip()}"
        elif line.strip():
            joined.append(line)
    return "\n".join(joined)


class _Captured(io.StringIO):
    """Text that would have gone to stdout, with the frames and colors of a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return bool(sys.__stdout__ and sys.__stdout__.isatty())


@contextmanager
def wrapped_help(arguments: list[str]) -> Iterator[None]:
    """Wrap the paragraphs of a help, which tyro prints as lines of any length."""
    if not {"-h", "--help"} & set(arguments):
        yield
        return
    captured, width = _Captured(), Console().width
    try:
        with redirect_stdout(captured):
            yield
    finally:
        for line in captured.getvalue().splitlines():
            is_prose = len(line) > width and not line.startswith(("│", "╭", "╰"))
            lines = textwrap.wrap(
                line.replace(",", ", ") if "{" in line else line,
                width,
                initial_indent=" " * (len(line) - len(line.lstrip())),
                subsequent_indent="  " if line.startswith("usage:") else "",
                break_long_words=False,
                break_on_hyphens=False,
            )
            sys.stdout.write(("\n".join(lines) if is_prose else line) + "\n")
