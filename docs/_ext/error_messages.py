"""Find the messages of errors and warnings in source files."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

INTERNAL = (
    "expected {n} checks",
    "random signs are not the signs of",
)
"""Messages that ask nothing of a user: other messages say what follows from these errors."""

WARNING_FUNCTIONS = {"warn", "warn_of", "warn_once", "warn_user"}
"""Functions and methods whose first text is the message of a warning."""


class Message(NamedTuple):
    """A message, with its placeholders in braces, and the place that issues it."""

    text: str
    kind: str  # name of the exception's class, or "warning"
    file: str  # relative to the root of the repository


def find_messages(root: Path, folder: str) -> list[Message]:
    """Return the messages in the modules of a folder, sorted by text and without repetition."""
    found = {
        Message(text, kind, path.relative_to(root).as_posix())
        for path in sorted((root / folder).rglob("*.py"))
        for text, kind in _of_module(path)
    }
    return sorted(found, key=lambda message: message.text.lstrip("`{").casefold())


def _of_module(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Raise(
                exc=ast.Call(func=ast.Name(kind) | ast.Attribute(attr=kind))
            ):
                yield from _texts(node.exc, kind)
            case ast.Call(func=ast.Name(name) | ast.Attribute(attr=name)) if (
                name in WARNING_FUNCTIONS
            ):
                yield from _texts(node, "warning", first=int(name == "warn_once"))


def _texts(
    call: ast.expr | None, kind: str, *, first: int = 0
) -> Iterator[tuple[str, str]]:
    """Yield the first argument that is a sentence, from the argument `first` on."""
    assert isinstance(call, ast.Call)
    for argument in call.args[first:]:
        if (text := _template(argument)) is not None and " " in text:
            if text.startswith(INTERNAL):
                return
            yield text, kind
            return


def _template(node: ast.expr) -> str | None:
    """Return the text of a string expression with placeholders; None for other expressions."""
    match node:
        case ast.Constant(str(text)):
            return text
        case ast.JoinedStr(parts):
            return "".join(map(_part, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            sides = (_template(left) or "{…}", _template(right) or "{…}")
            return None if sides == ("{…}", "{…}") else "".join(sides)
        case _:
            return None


def _part(part: ast.expr) -> str:
    match part:
        case ast.Constant(str(text)):
            return text
        case ast.FormattedValue(ast.Name(name) | ast.Attribute(attr=name)):
            return f"{{{name.strip('_')}}}"
        case _:
            return "{…}"
