"""Write results of analyses to a store of their own, ``run.analysis.zarr`` next to a run.

Analyses do not write to the run's own store, because its only writer is the recorder.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import xarray as xr
from filelock import FileLock, Timeout
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.sync import sync

from trajstore.reading.run import Run
from trajstore.reading.stored_results import CHECKS, result_check, writable_store
from trajstore.reading.target import Target
from trajstore.store.location import inside, is_remote, sibling

KINDS: Final = ("snapshot", "epoch", "step", "final of", "mean of epochs", "file")
"""First words of the target labels that end with a name or number."""


MAX_SLUG: Final = 100
"""Longest name of a target in a path; a longer one ends with a digest."""


def results_location(run: Run) -> str:
    """Return the location of a run's results, ``run.analysis.zarr``."""
    location = sibling(run.location, ".analysis.zarr")
    if not is_remote(location):
        # Nobody named this path, so unlike a store it must not be a link either.
        inside(Path(location).parent, Path(location).name)
    return location


def target_slug(label: str) -> str:
    """Return the label of a target as a part of a path."""
    # Users choose the names, which may contain characters that a path cannot.
    for kind in KINDS:
        if label.startswith(f"{kind} "):
            name = path_component(label.removeprefix(f"{kind} "))
            return f"{kind.replace(' ', '-')}-{name}"
    return label


def path_component(name: str) -> str:
    """Return a name as a component of a path: quoted, and not longer than `MAX_SLUG`."""
    component = quote(name, safe="", errors="backslashreplace")
    if len(component) <= MAX_SLUG:
        return component
    digest = sha256(component.encode()).hexdigest()[:16]
    return f"{component[: MAX_SLUG - 17]}-{digest}"


def replay_group(target: Target) -> str:
    """Return the path of the group that holds the losses of a run's batches at a target."""
    return f"replay-{target_slug(target.label)}"


def replayed_from(run: Run, target: Target) -> str:
    """Return JSON that identifies the run and the target of the losses in `replay_group`."""
    document = run.stored.document
    return json.dumps(
        {
            "created": document.created,
            "n_steps": run.n_steps,
            "n_resumes": len(document.resumes),
            "status": run.status,
            "reference": target.identity,
        }
    )


def write_results(run: Run, group: str, result: xr.Dataset) -> None:
    """Write a loaded dataset to a group of a run's results, replacing its contents."""
    location = results_location(run)
    with results_lock(location, group):
        checked = result.assign_attrs({CHECKS: _checks(result)})
        store = writable_store(location)
        # A process that is killed here leaves no attributes: the result is then not known, rather
        # than damaged.
        sync(store.delete(f"{group}/zarr.json"))
        to_group(store, group, result.drop_attrs(deep=False))
        xr.Dataset(attrs=checked.attrs).to_zarr(
            store, group=group, mode="a", zarr_format=3, consolidated=False
        )


@contextmanager
def results_lock(location: str, group: str) -> Iterator[None]:
    """Keep other processes from writing a group of results inside the block."""
    # The operating system releases the lock when the process ends, even after a crash.
    # Object storage and some file systems have no locks. Results in a directory that cannot
    # be written need none.
    with ExitStack() as stack:
        if not is_remote(location):
            path = inside(location, _lock_name(group))
            try:
                Path(location).mkdir(exist_ok=True)
                stack.enter_context(FileLock(path, thread_local=False))
                # Waiting processes notice that the file was deleted while it was locked.
                stack.callback(path.unlink, missing_ok=True)
            except (OSError, NotImplementedError):
                pass
        yield


def is_being_written(location: str, group: str) -> bool:
    """Whether a process holds the lock of a group of results."""
    if is_remote(location) or not inside(location, _lock_name(group)).exists():
        return False
    try:
        with FileLock(Path(location, _lock_name(group)), timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False


def _lock_name(group: str) -> str:
    return f".lock-{group}"


def _checks(result: xr.Dataset) -> dict[str, int]:
    """Return the checks of the variables that hold float64."""
    identity = str(result.attrs.get("computed_from", ""))
    return {
        str(name): result_check(identity, str(name), variable.values)
        for name, variable in result.variables.items()
        if variable.dtype == np.float64
    }


def to_group(store: Store, group: str, result: xr.Dataset, **options: Any) -> None:
    """Write a dataset to a group, replacing its contents, with a checksum in every chunk."""
    packed = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")
    encoding = {
        name: {"compressors": [packed, Crc32cCodec()]} for name in result.variables
    }
    result.to_zarr(
        store,
        group=group,
        mode="w",
        zarr_format=3,
        consolidated=False,
        encoding=encoding,
        write_empty_chunks=True,
        **options,
    )
