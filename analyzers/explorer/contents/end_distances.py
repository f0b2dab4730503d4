"""Distances between the starts and the ends of runs, as a table."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from analyzers.comparison.path_distances import path_distances
from analyzers.explorer.contents.shown_run import ShownRun


def end_distances(shown: Sequence[ShownRun]) -> dict[str, Any] | None:
    """Return names and values of the table; None for one run, or for different networks."""
    if len(shown) < 2:
        return None
    runs = [run.run for run in shown]
    try:
        lazy = path_distances(runs, steps=sorted({0, *(run.n_steps for run in runs)}))
        with threadpool_limits(1, user_api="blas"):
            found = lazy.compute()
    except ValueError:
        return None
    labels = found["run"].values
    borders = [0, *(np.flatnonzero(labels[1:] != labels[:-1]) + 1), len(labels)]
    rows, names = [], []
    for run, first, stop in zip(shown, borders, borders[1:], strict=False):
        steps = found["step"].values[first:stop].tolist()
        for step, place in ((0, "start"), (run.run.n_steps, "end")):
            if step in steps:
                rows.append(first + steps.index(step))
                names.append(f"{run.name}, {place}")
    values = found["distance"].values[np.ix_(rows, rows)]
    stderr = found["distance_stderr"].values[np.ix_(rows, rows)]
    return {
        "names": names,
        "values": values.tolist(),
        "stderr": stderr.tolist(),
        "note": "|x − x'| of starts and ends",
    }
