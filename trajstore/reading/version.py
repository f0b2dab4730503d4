"""View a store as of an earlier commit, even if it has grown since."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from trajstore.format.arrays import (
    ENDED,
    KEYFRAMES,
    StoredArray,
    n_keyframes,
    n_metric_columns,
)
from trajstore.format.document import Document, RowGroup
from trajstore.store.opening import OpenedStore


class StoreVersion(NamedTuple):
    """A store as of one commit, described by the size of its contents."""

    created: str  # start time of the recording, which identifies it
    n_resumes: int  # a resumption after this commit may have replaced rows
    n_steps: int
    n_windows: int
    n_ended: int  # windows whose energies or sums are stored
    n_metrics: int
    n_snapshots: int
    n_measured: tuple[
        tuple[int, int], ...
    ]  # numbers of rows and scalars of each measurement
    has_final: bool
    is_written: bool | None  # whether a process was writing the store
    status: str


def version_of(document: Document, *, is_written: bool | None) -> StoreVersion:
    """Return the version that a root document describes."""
    return StoreVersion(
        created=document.created,
        n_resumes=len(document.resumes),
        n_steps=document.n_rows(document.steps),
        n_windows=document.n_windows,
        n_ended=document.n_ended,
        n_metrics=len(document.steps.metrics),
        n_snapshots=len(document.snapshots),
        n_measured=tuple(
            (document.n_rows(group), len(group.metrics))
            for group in document.measurements.values()
        ),
        has_final=document.has_final,
        is_written=is_written,
        status=document.status,
    )


def view_at(location: str, opened: OpenedStore, version: StoreVersion) -> OpenedStore:
    """Return a store as it was at `version`; raise ValueError if that is impossible."""
    document = opened.document
    if problem := replacement(document, version):
        raise ValueError(
            f"{location} has changed since it was opened: {problem}. Open the run again, "
            "and repeat the computations."
        )
    measurements = {
        name: _narrowed(group, n_metrics)
        for (name, group), (_, n_metrics) in zip(
            document.measurements.items(), version.n_measured, strict=False
        )
    }
    view = replace(
        document,
        status=version.status,
        steps=_narrowed(document.steps, version.n_metrics),
        measurements=measurements,
        snapshots=dict(islice(document.snapshots.items(), version.n_snapshots)),
    )
    return OpenedStore(opened.store, replace(view, arrays=_cut(view, version)))


def _narrowed(group: RowGroup, n_metrics: int) -> RowGroup:
    return replace(group, metrics=group.metrics[:n_metrics])


def replacement(document: Document, version: StoreVersion) -> str | None:
    """Describe the change if a store no longer extends `version`; None if it still does."""
    if document.created != version.created:
        return f"it was created at {document.created}, not {version.created}"
    now = version_of(document, is_written=False)
    if now.n_resumes != version.n_resumes:
        return "the recording was resumed, and rows may have been replaced"
    lengths = {
        "steps": (now.n_steps, version.n_steps),
        "windows": (now.n_windows, version.n_windows),
        "ended windows": (now.n_ended, version.n_ended),
        "scalars": (now.n_metrics, version.n_metrics),
        "snapshots": (now.n_snapshots, version.n_snapshots),
        "measurements": (len(now.n_measured), len(version.n_measured)),
    }
    for name, (n_now, n_then) in lengths.items():
        if n_now < n_then:
            return f"it has {n_now} {name}, but had {n_then}"
    return None


def _cut(view: Document, version: StoreVersion) -> Mapping[str, StoredArray]:
    """Return the arrays of a version, with their lengths and columns at that commit."""
    n_rows = {view.steps.path: version.n_steps}
    n_metrics = {view.steps.path: version.n_metrics}
    for group, sizes in zip(
        view.measurements.values(), version.n_measured, strict=True
    ):
        n_rows[group.path], n_metrics[group.path] = sizes
    vectors = {snapshot.array for snapshot in view.snapshots.values()}
    vectors |= {"final"} if version.has_final else set()
    cut = {}
    for path, array in view.arrays.items():
        spec, length = array
        parent, _, name = path.rpartition("/")
        if spec.dims == ("param",):
            if path not in vectors:
                continue
        elif parent == "references":
            n = version.n_windows
            length = n_keyframes(n) if path == KEYFRAMES else n
            length = version.n_ended if path in ENDED else length
        elif parent in n_rows:
            length = n_rows[parent]
            if name == "scalars":
                spec = replace(spec, inner=(n_metric_columns(n_metrics[parent]),))
        else:
            continue
        cut[path] = StoredArray(spec, length)
    return cut
