"""Delete the store of a recording, to record again at its place; refuse to delete anything else."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from uuid import uuid4

from trajstore.store.holder import WRITER, StoreLockedError
from trajstore.store.location import is_remote, locate
from trajstore.store.lock import LOCK, is_written
from trajstore.store.opening import is_run_directory

OWN_NAMES: Final = frozenset(
    {
        *("zarr.json", LOCK, WRITER, ".journal"),
        *("epoch", "iteration", "window", "scalars", "tables", "samples"),
        *("signs", "scales", "gradient_probes", "displacement_probes", "probe_scales"),
        *("gradient", "displacement", "references", "snapshots", "final"),
        "measurements",
    }
)
"""Names of files and directories in the directory of a store."""


def remove_store(path: str | os.PathLike[str]) -> None:
    """Delete a trajectory store, if there is one at `path`."""
    # Raises FileExistsError if anything in the directory may not be of a recording,
    # StoreLockedError if a process is writing the store, and NotImplementedError for a URL.
    location = locate(path)
    if is_remote(location):
        raise NotImplementedError(
            f"overwrite=True deletes only directories on this machine, and {location} is "
            "remote. Choose a new path, or delete the store first."
        )
    directory = Path(location)
    if not os.path.lexists(directory):
        return
    _check(directory)
    # None: whether a process writes it cannot be known.
    if is_written(location) is not False:
        raise StoreLockedError(
            f"{location} is being recorded, so it is not overwritten. Close that recorder, "
            "or choose another path."
        )
    # A reader sees the whole store or none, and a writer notices that its lock is gone.
    moved = directory.with_name(f".{directory.name}.deleted-{uuid4().hex[:12]}")
    directory.rename(moved)
    try:
        # Only what has been checked is deleted.
        _check(moved)
    except FileExistsError:
        moved.rename(directory)
        raise
    shutil.rmtree(moved)


def _check(directory: Path) -> None:
    """Raise FileExistsError unless a directory holds a trajectory store and nothing else."""
    if directory.is_symlink() or not is_run_directory(directory):
        kind = "a link" if directory.is_symlink() else "not a trajectory store"
        raise FileExistsError(
            f"{directory} is {kind}, and overwrite=True deletes nothing else than the "
            "directory of a trajectory store. Choose another path, or delete it yourself."
        )
    foreign = [
        path.name
        for path in sorted(directory.iterdir())
        if path.name not in OWN_NAMES and path.suffix != ".partial"
    ]
    foreign += [os.path.relpath(path, directory) for path in _other_files(directory)]
    if foreign:
        raise FileExistsError(
            f"{directory} holds {foreign[:3]}, which no recording has written, so "
            "overwrite=True does not delete it. Move these files, or choose another path."
        )


def _other_files(directory: Path) -> Iterator[str]:
    """Yield the paths of links, pipes, devices and sockets below a directory."""
    with os.scandir(directory) as entries:
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                yield from _other_files(Path(entry.path))
            elif not stat.S_ISREG(mode):
                yield entry.path
