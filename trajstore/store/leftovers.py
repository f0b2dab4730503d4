"""Remove what a commit has written into a store that was deleted during the commit."""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from zarr.abc.store import Store

from trajstore.store.event_loop import EventLoop
from trajstore.store.holder import PROTOTYPE, WRITER
from trajstore.store.location import is_remote, open_store


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
