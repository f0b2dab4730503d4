"""Recognise the directory of a trajectory store, or of results next to one, by its root document."""

import os
import re
from pathlib import Path
from typing import Final

from trajstore.store.location import OutsideStoreError, inside

BEGINNING: Final = re.compile(
    rb'\{"zarr_format": 3, "node_type": "group", "attributes": '
    rb'\{(?:"checksum": "[0-9a-f]{8}", )?"format": "trajstore", '
)
"""Beginning of every root document of a store, of this and of earlier versions."""

RESULTS_SUFFIX: Final = ".analysis.zarr"
"""End of the name of the directory of a run's results."""


def is_run_directory(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a directory with the root document of a trajectory store."""
    # The document may be damaged after its beginning.
    try:
        if not Path(path).is_dir():
            return False
        with inside(Path(path), "zarr.json").open("rb") as file:
            return BEGINNING.match(file.read(256)) is not None
    except (OSError, ValueError, OutsideStoreError):  # ValueError: a null character
        return False


def is_results_directory(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the directory of the results of a store next to it."""
    text = os.fspath(path).rstrip("/" + os.sep)
    if not text.endswith(RESULTS_SUFFIX) or not Path(text).is_dir():
        return False
    return is_run_directory(text.removesuffix(RESULTS_SUFFIX) + ".zarr")
