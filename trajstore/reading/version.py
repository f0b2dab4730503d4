"""A store as it was at an earlier moment, though it has grown since."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from trajstore.format.arrays import KEYFRAME_EVERY, KEYFRAMES, n_metric_columns
from trajstore.store.opening import Opened


class Moment(NamedTuple):
    """How far a store had come when it was opened.

    Attributes
    ----------
    created : str
        When the recording began: another time means another recording.
    n_resumes : int
        How often it had been taken up again; rows may have been replaced then.
    n_steps, n_windows, n_metrics, n_snapshots : int
        How much there was.
    n_measured : tuple of tuple of int
        Rows of every measurement, and how many scalars they had.
    has_final, is_written : bool
        Whether the last iterate was there, and whether a process was writing.
    status : str
        What the store said of itself.
    """

    created: str
    n_resumes: int
    n_steps: int
    n_windows: int
    n_metrics: int
    n_snapshots: int
    n_measured: tuple[tuple[int, int], ...]
    has_final: bool
    is_written: bool
    status: str


def as_it_was(location: str, opened: Opened, moment: Moment) -> Opened:
    """Leave out of a store what has come since.

    Parameters
    ----------
    location : str
        Of the store; for messages.
    opened : Opened
        The store as it is now.
    moment : Moment
        The earlier moment.

    Returns
    -------
    Opened
        With the attributes and lengths of then.

    Raises
    ------
    ValueError
        If what is there now is not a continuation of what was there then.
    """
    if problem := _replaced(opened, moment):
        raise ValueError(
            f"{location} is not as it was when it was opened: {problem}. Open the run "
            "again, and make what was computed from it anew."
        )
    metrics, snapshots = opened.attributes["metrics"], opened.attributes["snapshots"]
    measurements = zip(
        opened.attributes["measurements"].items(), moment.n_measured, strict=False
    )
    attributes = {
        **opened.attributes,
        "status": moment.status,
        "metrics": metrics[: moment.n_metrics],
        "snapshots": dict(list(snapshots.items())[: moment.n_snapshots]),
        "measurements": {
            name: {**found, "metrics": found["metrics"][:n_metrics]}
            for (name, found), (_, n_metrics) in measurements
        },
    }
    return Opened(opened.store, attributes, _cut(opened.arrays, attributes, moment))


def n_resumes(attributes: Mapping[str, Any]) -> int:
    """Return how often a recording was taken up again."""
    resumes = attributes.get("resumes")
    return len(resumes) if isinstance(resumes, list) else 0


def _replaced(opened: Opened, moment: Moment) -> str | None:
    """Say in what a store is not a continuation of what it was."""
    created = opened.attributes["created"]
    if created != moment.created:
        return f"it was begun {created}, not {moment.created}"
    if n_resumes(opened.attributes) != moment.n_resumes:
        return "the recording was taken up again, and rows may have been replaced"
    lengths = {
        "steps": (opened.arrays["epoch"]["shape"][0], moment.n_steps),
        "windows": (opened.arrays["references/start"]["shape"][0], moment.n_windows),
        "scalars": (len(opened.attributes["metrics"]), moment.n_metrics),
        "snapshots": (len(opened.attributes["snapshots"]), moment.n_snapshots),
        "measurements": (
            len(opened.attributes["measurements"]),
            len(moment.n_measured),
        ),
    }
    for what, (now, then) in lengths.items():
        if now < then:
            return f"it has {now} {what}, and had {then}"
    return None


def _cut(
    arrays: Mapping[str, Any], attributes: Mapping[str, Any], moment: Moment
) -> dict[str, Any]:
    """Leave out of the arrays what was not there yet."""
    vectors = {s["array"] for s in attributes["snapshots"].values()}
    vectors |= {"final"} if moment.has_final else set()
    tables = {"": (moment.n_steps, moment.n_metrics)} | {
        found["group"]: sizes
        for found, sizes in zip(
            attributes["measurements"].values(), moment.n_measured, strict=True
        )
    }
    cut = {}
    for name, document in arrays.items():
        group, _, array = name.rpartition("/")
        first, *inner = document["shape"]
        if document["dimension_names"] == ["param"]:
            if name not in vectors:
                continue
        elif group == "references":
            n_keyframes = -(-moment.n_windows // KEYFRAME_EVERY)
            first = n_keyframes if name == KEYFRAMES else moment.n_windows
        elif group in tables:
            first, n_metrics = tables[group]
            inner = [n_metric_columns(n_metrics)] if array == "scalars" else inner
        else:
            continue
        cut[name] = {**document, "shape": [first, *inner]}
    return cut
