"""Print to a terminal that text from stores cannot control."""

import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeVar

from rich.console import Console
from rich.progress import track
from rich.text import Text

from trajstore.format.shown import shown

Item = TypeVar("Item")

QUIET: Final = ContextVar("QUIET", default=False)
"""Whether only warnings and errors are printed; a command line sets it."""


class PlainConsole(Console):
    """A console that shows every string as it is: without markup, and without escapes."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert a string to printable text."""
        options |= {"markup": False, "emoji": False, "highlight": False}
        return super().render_str(shown(text, keep="\n\t"), **options)


def make_console(*, stderr: bool = False) -> Console:
    """Return a console for text that may come from a store."""
    return PlainConsole(
        stderr=stderr,
        markup=False,
        emoji=False,
        highlight=False,
        quiet=QUIET.get() and not stderr,
    )


def print_json(document: Mapping[str, Any]) -> None:
    """Print a JSON document in one line, even if the command is quiet."""
    # Everything that is not printable ASCII is escaped.
    sys.stdout.write(json.dumps(document) + "\n")


def progress(items: Iterable[Item], description: str) -> Iterable[Item]:
    """Iterate over items, and show the progress on stderr."""
    return track(
        items, description, console=make_console(stderr=True), disable=hides_progress()
    )


def hides_progress() -> bool:
    """Whether progress is hidden: if asked for, and in logs, where bars are clutter."""
    console = make_console(stderr=True)
    return QUIET.get() or not (console.is_terminal or console.is_jupyter)


@contextmanager
def printed_warnings() -> Iterator[None]:
    """Print warnings as single printable lines inside the block."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *_: Any) -> None:
        if issubclass(category, UserWarning):
            text = f"warning: {message}"
            make_console(stderr=True).print(text, soft_wrap=True, style="yellow")
        else:
            sys.stderr.write(shown(f"{category.__name__}: {message}") + "\n")

    warnings.showwarning = show  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = before
