"""Delete the store of a recording, and what a commit has written into a deleted store."""

import os
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

from zarr.abc.store import Store

from trajstore.store.event_loop import EventLoop
from trajstore.store.holder import PROTOTYPE, WRITER, StoreLockedError
from trajstore.store.location import is_remote, locate, open_store
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


def remove_leftovers(location: str, loop: EventLoop, arrays: Collection[str]) -> None:
    """Remove the files of a deleted store; `arrays` are the paths of all of its arrays."""
    loop.run(_remove(open_store(location, own_loop=True), arrays))
    if not is_remote(location):
        with suppress(OSError):
            Path(location).rmdir()


async def _remove(store: Store, arrays: Collection[str]) -> None:
    # A store is deleted file by file, so a commit may write files again that were deleted. A
    # store that lacks only the document of its writer is whole, and is left alone.
    if await store.get(WRITER, PROTOTYPE) is not None:
        return
    documents = [
        await store.get(f"{name}/zarr.json", PROTOTYPE) for name in sorted(arrays)
    ]
    if None not in documents:
        return
    await store.delete("zarr.json")
    for name in sorted({name.partition("/")[0] for name in arrays}):
        await store.delete_dir(name)
