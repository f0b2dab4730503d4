"""Warn at the line of the user's program that led to a warning."""

import sys
from pathlib import Path
from types import FrameType
from typing import Final
from warnings import warn

import torch

import trajstore

LIBRARIES: Final = tuple(
    f"{Path(package.__file__ or '').parent}/" for package in (trajstore, torch)
)
"""Folders whose code only passes calls on; `skip_file_prefixes` needs Python 3.12."""

TRAINERS: Final = ("lightning", "pytorch_lightning", "transformers", "accelerate")
"""Packages that call the recorder for the user."""

STANDARD: Final = ("contextlib", "functools", "threading", "atexit")
"""Modules of the standard library that pass calls on."""


def warn_user(message: str) -> None:
    """Warn, and show the innermost line that belongs to none of these libraries."""
    warn(message, stacklevel=_stacklevel())


def _stacklevel() -> int:
    """Return the stack level of the user's line, seen from the caller of this function."""
    level, outermost = 1, 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not _passes_calls_on(frame):
            return level
        frame, level, outermost = frame.f_back, level + 1, level
    # The program ends, and no line of the user's runs.
    return outermost


def _passes_calls_on(frame: FrameType) -> bool:
    name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return (
        name in TRAINERS
        or name in STANDARD
        or frame.f_code.co_filename.startswith(LIBRARIES)
    )
