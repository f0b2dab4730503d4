"""Find the messages of errors and warnings in source files."""

import ast
import re
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


NOTE = "warning, note, or part of a message"
"""Kind of a sentence that no statement issues directly, such as a constant or a returned text."""

MIN_WORDS = 5
"""Fewest words of a sentence that no statement issues directly."""

SENTENCE = re.compile(r"""[A-Z`{'].*([.:!?}'"]|%[ds])$""", re.DOTALL)
MARKUP = re.compile(r"</?[a-z]+>|---|;\s*\}")
"""Texts that are sentences, and those that are markup or code."""


Constants = dict[str, str]
"""Texts that a module assigns to names, by name."""


class Message(NamedTuple):
    """A message, with its placeholders in braces, and the place that issues it."""

    text: str
    kind: str  # name of the exception's class, "warning", or `NOTE`
    file: str  # relative to the root of the repository


def find_messages(root: Path, folder: str) -> list[Message]:
    """Return the messages in a module or those of a folder, sorted by text, without repetition."""
    found = {
        Message(text, kind, path.relative_to(root).as_posix())
        for path in [root / folder, *sorted((root / folder).rglob("*.py"))]
        if path.is_file()
        for text, kind in _of_module(path)
    }
    return sorted(found, key=lambda message: message.text.lstrip("`{").casefold())


def _of_module(path: Path) -> Iterator[tuple[str, str]]:
    tree = ast.parse(path.read_text())
    constants: Constants = {}
    for statement in tree.body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(name)], value=value)
                | ast.AnnAssign(target=ast.Name(name), value=value)
            ) if value is not None and (text := _template(value, constants)):
                constants[name] = text
    seen: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Raise(
                exc=ast.Call(func=ast.Name(kind) | ast.Attribute(attr=kind))
            ):
                issued = _texts(node.exc, kind, constants)
            case ast.Call(func=ast.Name(name) | ast.Attribute(attr=name)) if (
                name in WARNING_FUNCTIONS
            ):
                first = int(name == "warn_once")
                issued = _texts(node, "warning", constants, first=first)
            case _:
                continue
        for text, kind in issued:
            seen.add(text)
            yield text, kind
    for text in _sentences(tree, constants):
        if text not in seen and not text.startswith(INTERNAL):
            yield text, NOTE


def _texts(
    call: ast.expr | None, kind: str, constants: Constants, *, first: int = 0
) -> Iterator[tuple[str, str]]:
    """Yield the first argument that is a sentence, from the argument `first` on."""
    assert isinstance(call, ast.Call)
    for argument in call.args[first:]:
        # A list has every problem that was found.
        parts = argument.elts if isinstance(argument, ast.List) else [argument]
        found = (_template(part, constants) for part in parts)
        texts = [text for text in found if text and " " in text]
        if any(text.startswith(INTERNAL) for text in texts):
            return
        yield from ((text, kind) for text in texts)
        if texts:
            return


def _sentences(tree: ast.AST, constants: Constants) -> Iterator[str]:
    """Yield the sentences in all strings but docstrings and the summaries of commands."""
    match tree:
        case ast.Expr(ast.Constant(str())) | ast.Call(func=ast.Name("Command")):
            return
        case ast.Constant(str()) | ast.JoinedStr() | ast.BinOp(op=ast.Add()):
            text = _template(tree, constants)
            if text is not None:
                words = " ".join(text.split())
                is_sentence = (
                    SENTENCE.match(words) and words.count(" ") >= MIN_WORDS - 1
                )
                if is_sentence and not MARKUP.search(words):
                    yield text
                return
    for child in ast.iter_child_nodes(tree):
        yield from _sentences(child, constants)


def _template(node: ast.expr, constants: Constants) -> str | None:
    """Return the text of a string expression with placeholders; None for other expressions."""
    match node:
        case ast.Constant(str(text)):
            return text
        case ast.Name(name):
            return constants.get(name)
        case ast.JoinedStr(parts):
            return "".join(_part(part, constants) for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            sides = tuple(_template(side, constants) or "{…}" for side in (left, right))
            return None if sides == ("{…}", "{…}") else "".join(sides)
        case _:
            return None


def _part(part: ast.expr, constants: Constants) -> str:
    match part:
        case ast.Constant(str(text)):
            return text
        case ast.FormattedValue(ast.Name(name)) if name in constants:
            return constants[name]
        case ast.FormattedValue(ast.Name(name) | ast.Attribute(attr=name)):
            return f"{{{name.strip('_')}}}"
        case _:
            return "{…}"
