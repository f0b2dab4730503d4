"""Where what was computed from a run is kept: beside it, in a store of its own.

The run's store has one writer, and results never go into it.
"""

import json
from typing import Final
from urllib.parse import quote

import xarray as xr
import zarr

from trajstore.reading.run import Run
from trajstore.reading.target import ReferencePoint
from trajstore.store.location import open_store, sibling

KINDS: Final = ("snapshot", "epoch", "final of")
"""Beginnings of labels of reference points, behind which there is a free name."""


def results_location(run: Run) -> str:
    """Return where the results of a run lie: beside it, ``run.analysis.zarr``."""
    return sibling(run.location, ".analysis.zarr")


def reference_slug(label: str) -> str:
    """Return the label of a reference point as a part of a path."""
    # Only the names of snapshots and runs are free, and may hold what a path cannot.
    for kind in KINDS:
        if label.startswith(f"{kind} "):
            name = quote(label.removeprefix(f"{kind} "), safe="")
            return f"{kind.replace(' ', '-')}-{name}"
    return label


def replay_group(point: ReferencePoint) -> str:
    """Return the group of the losses of a run's batches at a reference point."""
    return f"replay-{reference_slug(point.label)}"


def replayed_from(run: Run, point: ReferencePoint) -> str:
    """Say what such losses rest on, as JSON: equal for those that would be equal."""
    return json.dumps(
        {
            "created": run.stored.document.created,
            "n_steps": run.n_steps,
            "n_resumes": len(run.stored.document.resumes),
            "status": run.status,
            "reference": point.identity,
        }
    )


def write_results(run: Run, group: str, result: xr.Dataset) -> None:
    """Write a loaded dataset beside a run; what is in the group is replaced."""
    store = open_store(results_location(run))
    zarr.open_group(store, mode="a", use_consolidated=False)
    result.to_zarr(store, group=group, mode="w", consolidated=False)
