"""Open, name and check the runs of a comparison."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from trajstore.reading.accepts_path import RunLike, as_run
from trajstore.reading.run import Run

MAX_SHOWN = 5
"""Number of different layers that an error message names."""


def as_runs(runs: RunLike | Iterable[RunLike]) -> list[Run]:
    """Return the runs of a run, a path, or several of them; of measurements, the whole run."""
    is_one = isinstance(runs, Run | str | os.PathLike)
    given = [runs] if is_one else list(runs)  # type: ignore[arg-type]
    if not given:
        raise ValueError("`runs` is empty; give one or more runs, or paths of stores.")
    opened = [as_run(run) for run in given]  # type: ignore[arg-type]
    return [
        Run(run.stored.step_rows) if run.group.is_measurement else run for run in opened
    ]


def run_names(runs: Sequence[Run]) -> list[str]:
    """Return the shortest ends of the runs' locations that tell them apart."""
    parts = [PurePosixPath(run.location.replace("\\", "/")).parts for run in runs]
    n, most = 1, max(map(len, parts))
    while n < most and len({p[-n:] for p in parts}) < len(set(parts)):
        n += 1
    names = ["/".join(p[-n:]).replace("//", "/") for p in parts]
    # A run that is given twice has a number in its second name.
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    # Halves of characters, which a foreign path may contain, cannot be encoded.
    return [name.encode(errors="backslashreplace").decode() for name in unique]


def check_one_architecture(runs: Sequence[Run]) -> None:
    """Raise ValueError if the layers of runs differ in names, shapes or order."""
    first, *others = runs
    for run in others:
        if run.layout == first.layout:
            continue
        a, b = (
            dict(zip(r.layout.names, r.layout.shapes, strict=True))
            for r in (first, run)
        )
        different = [
            f"{name!r}: {a.get(name, 'absent')} and {b.get(name, 'absent')}"
            for name in dict.fromkeys([*a, *b])
            if a.get(name) != b.get(name)
        ]
        shown = "; ".join(different[:MAX_SHOWN]) or "the order of their layers"
        more = len(different) - MAX_SHOWN
        raise ValueError(
            f"{first.location} and {run.location} have different parameters, so their "
            f"iterates cannot be compared: {shown}"
            + (f"; and {more} more" if more > 0 else "")
            + ". Give runs of one architecture."
        )
