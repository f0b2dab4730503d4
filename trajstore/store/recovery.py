"""Bring the journal of an interrupted recording into its store."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trajstore.format.document import parse_document
from trajstore.store.journal import JOURNAL, Journal, replay
from trajstore.store.location import is_remote, locate
from trajstore.store.writer import Writer


def recover(path: str | os.PathLike[str]) -> int:
    """Write to a store the steps that only its journal holds.

    A recording that is resumed does the same by itself; this is for one that is not.

    Parameters
    ----------
    path : str or os.PathLike
        Directory of the store.

    Returns
    -------
    int
        How many steps there were.

    Raises
    ------
    StoreLockedError
        If the store is being written.
    SchemaError
        If it is not a trajectory store.
    """
    location = locate(path)
    if not has_journal(location):
        return 0
    # In a thread of its own there is no event loop in the way, as in a notebook.
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(_recover, Path(location)).result()


def has_journal(location: str) -> bool:
    """Whether a store has a journal: it is being recorded, or was interrupted."""
    return not is_remote(location) and (Path(location) / JOURNAL).exists()


def _recover(store: Path) -> int:
    document = parse_document((store / "zarr.json").read_bytes())
    spec, size = document.spec, document.layout.size
    writer = Writer(store, spec, resume=True)
    try:
        found = replay(writer, store, spec, size)
        writer.commit()
        Journal(store).remove()
    finally:
        writer.close()
    return found
