"""Names, summaries and default settings of all workloads, without their models and data.

``known.json`` is written by ``make known-workloads`` from the catalogue, so that commands can
list workloads without importing torch. A test compares both.
"""

import json
from dataclasses import fields
from importlib.resources import files
from typing import Any, Final, NamedTuple

from train.settings import Training

FILE: Final = files("train.workloads") / "known.json"


class KnownWorkload(NamedTuple):
    """A workload without its model and data."""

    summary: str  # one line, for `traj-train list`
    settings: Training


def _restored(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


KNOWN: Final[dict[str, KnownWorkload]] = {
    name: KnownWorkload(
        entry["summary"],
        Training(**{k: _restored(v) for k, v in entry["settings"].items()}),
    )
    for name, entry in json.loads(FILE.read_text()).items()
}


def as_text(workloads: dict[str, KnownWorkload]) -> str:
    """Return the contents of ``known.json``: summaries, and settings that are not defaults."""
    entries = {}
    for name, workload in workloads.items():
        values = {f.name: getattr(workload.settings, f.name) for f in fields(Training)}
        defaults = {f.name: f.default for f in fields(Training)}
        entries[name] = {
            "summary": workload.summary,
            "settings": {k: v for k, v in values.items() if v != defaults[k]},
        }
    return json.dumps(entries, indent=1) + "\n"


def check_width(training: Training) -> None:
    """Refuse a width that the workload cannot use, and a missing width that it needs."""
    name, width = training.workload, training.width
    if width is not None and KNOWN[name].settings.width is None:
        raise ValueError(
            f"width: {name} has no width to choose, got {width}; leave it out."
        )
    if width is None and KNOWN[name].settings.width is not None:
        raise ValueError(f"width: {name} needs a whole number, got nothing.")
