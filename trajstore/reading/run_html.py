"""Show a run in a notebook: what it holds, its size and status, and a sparkline."""

import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trajstore.format.html import facts, names, sparkline
from trajstore.reading.stored_rows import StoredRows
from trajstore.store.location import is_remote

MAX_CHUNKS: Final = 8
POINTS: Final = 96
"""Largest number of chunks that a sparkline reads, and of its points."""

MAX_FILES: Final = 20_000
"""Number of files after which counting the bytes of a store ends."""

UNITS: Final = ("bytes", "kB", "MB", "GB", "TB")


def run_html(run: Any) -> str:
    """Return the HTML of a `trajstore.Run`."""
    stored: StoredRows = run.stored
    spec, layout, group = run.spec, run.layout, run.group
    title = "trajstore.Run"
    rows = {"store": run.location}
    if group.is_measurement:
        rows["measurement"] = f"{group.name}, {run.n_steps:,} rows"
    else:
        rows |= {"status": run.status, "steps": f"{run.n_steps:,}"}
        rows["epochs"] = f"{run.n_epochs:,}"
    sketch = (
        "whole gradients" if spec.exact else f"{spec.sketch_bits:,} bits a gradient"
    )
    rows |= {
        "parameters": f"{layout.n_params:,}; layers: {len(layout.names):,}",
        "recorded": f"{sketch}; anchors: {run.n_windows:,}",
        "scalars": names(run.metrics),
        "snapshots": names(run.snapshots),
    }
    if not group.is_measurement and run.measurements:
        rows["measurements"] = names(run.measurements)
    if size := size_of(run.location):
        rows["size"] = size
    if run.status == "running":
        rows["note"] = "as of the time it was opened; run.refresh() opens it again"
    return facts(title, rows, sparkline_of(stored, run.metrics))


def size_of(location: str) -> str:
    """Return the size of a local store as text; of a remote store, an empty text."""
    if is_remote(location):
        return ""
    total = n_files = 0
    for folder, _, files in os.walk(location):
        for name in files:
            try:
                total += Path(folder, name).lstat().st_size
            except OSError:  # A recording replaces files.
                continue
        n_files += len(files)
        if n_files > MAX_FILES:
            return f"more than {_bytes(total)}"
    return _bytes(total)


def _bytes(n: float) -> str:
    for unit in UNITS[:-1]:
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} {UNITS[-1]}"


def sparkline_of(stored: StoredRows, metrics: list[str]) -> str:
    """Draw the loss, or the norm of the gradient, at a few of the steps."""
    name = next((n for n in ("loss", "grad_norm") if n in metrics), None)
    if name is None or stored.n_rows < 2:
        return ""
    steps = sampled_steps(stored.n_rows, stored.array("scalars").chunks[0])
    column = stored.group.metrics.index(name)
    values = [
        float(stored.rows("scalars", slice(k, k + 1))[0, column])
        for k in steps.tolist()
    ]
    return sparkline(name, stored.step_numbers[steps], np.array(values))


def sampled_steps(n_steps: int, chunk: int) -> npt.NDArray[np.int64]:
    """Return at most `POINTS` steps in at most `MAX_CHUNKS` chunks, with both ends."""
    n_chunks = -(-n_steps // chunk)
    if n_chunks <= MAX_CHUNKS:
        return np.unique(np.linspace(0, n_steps - 1, POINTS).round().astype(np.int64))
    chosen = np.linspace(0, n_chunks - 1, MAX_CHUNKS).round().astype(np.int64)
    ends = np.minimum((chosen + 1) * chunk, n_steps) - 1
    parts = [
        np.linspace(first, last, POINTS // MAX_CHUNKS).round().astype(np.int64)
        for first, last in zip(chosen * chunk, ends, strict=True)
    ]
    return np.unique(np.concatenate(parts))
