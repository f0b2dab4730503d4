"""Send what is stored of a run to a tracker."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np
import xarray as xr

from analyzers._reporting import existing_figures
from analyzers.explorer.contents.stored_geometries import (
    read_geometry,
    stored_geometries,
)
from analyzers.geometry.epoch_means import means_for_tables
from analyzers.geometry.time_axis import time_of
from trajstore.reading.accepts_path import accepts_path
from trajstore.reading.run import Run
from trajstore.trackers.reporter import Reporter, as_reporters
from trajstore.trackers.rows import PRODUCTS, Rows, chosen_layers, step_values
from trajstore.trackers.sink import Sink

SPAN: Final = 4096
"""Number of steps that are read at a time."""

MAX_REPORTED: Final = 1000
"""Largest number of steps that are sent by default."""

QUANTITIES: Final = ("gamma", "rsi", "eb", "lolr", "distance")


@accepts_path
def log(
    run: Run,
    *,
    to: str | Sink,
    every: int | None = None,
    layers: bool | Sequence[str] = True,
) -> dict[str, int]:
    """Send steps, stored geometry, figures and the explorer page of a run to a tracker.

    Values of steps have the names that the recorder's ``report_to=`` gives them. Means of
    geometry over epochs are called ``geometry_TARGET/gamma`` and so on, each with its standard
    error, and belong to the last step of the epoch; of a run with one epoch, means over 20
    ranges of steps are sent.

    Parameters
    ----------
    run : Run, str or os.PathLike
        The run, or the path or URL of its store.
    to : str or trajstore.trackers.Sink
        An address such as ``"tensorboard:logs"``, see `trajstore.trackers.open_sink`, or a
        sink. It is closed at the end.
    every : int, optional
        Send each step whose number is a multiple of this. Default: as few steps are left out
        as it takes to send at most 1000.
    layers : bool or sequence of str, default: True
        Also send norms, ratios and cosines of layers: of all, of none, or of those whose
        names match one of these patterns, such as ``"*.weight"``.

    Returns
    -------
    dict
        Numbers of ``steps``, ``geometries``, ``figures`` and ``pages`` that were sent.

    Raises
    ------
    ValueError
        If the address is not known, if `every` is less than 1, or if `run` is a measurement.
    ModuleNotFoundError
        If the package of the tracker is not installed.
    """
    if run.group.is_measurement:
        raise ValueError(
            f"Trackers show optimizer steps, and {run.group.name!r} is a measurement of "
            f"{run.location}. Pass the run itself."
        )
    every = -(-max(run.n_steps, 1) // MAX_REPORTED) if every is None else every
    [reporter] = as_reporters(Reporter(to=to, every=every, layers=layers))
    sink = reporter.to
    assert isinstance(sink, Sink)
    try:
        sink.settings({"store": run.location, **run.attrs})
        sent = {
            "steps": _send_steps(run, sink, reporter),
            "geometries": _send_geometries(run, sink),
        }
        figures, pages = existing_figures(run)
        for path in figures:
            sink.figure(f"figures/{path.stem}", path, step=max(run.n_steps - 1, 0))
        for path in pages:
            sink.page(f"pages/{path.stem}", path)
    finally:
        sink.close()
    return sent | {"figures": len(figures), "pages": len(pages)}


def _send_steps(run: Run, sink: Sink, reporter: Reporter) -> int:
    """Send scalars and norms of steps, and return the number of steps."""
    layers = chosen_layers(run.spec.names, reporter.layers)
    began = _began(run)
    previous, n_sent = None, 0
    for rows in _rows(run):
        found = step_values(
            rows,
            run.spec.names,
            every=reporter.every,
            layers=layers,
            previous_sq=previous,
        )
        for step, elapsed, values in found:
            sink.scalars(step, values, time=began + elapsed)
        previous, n_sent = rows.products["grad_sq"][-1], n_sent + len(found)
    return n_sent


def _rows(run: Run) -> Iterator[Rows]:
    """Yield the steps of a run, `SPAN` steps at a time."""
    steps = run.steps
    names = [name for name in PRODUCTS if name in steps]
    for start in range(0, run.n_steps, SPAN):
        part = steps.isel(step=slice(start, start + SPAN))
        products = part[names].compute().transpose("step", "layer")
        scalars = part[[*run.metrics]].compute()
        columns = {
            str(name): values.values.tolist() for name, values in scalars.items()
        }
        yield Rows(
            start,
            {name: products[name].values for name in names},
            [
                {
                    name: values[i]
                    for name, values in columns.items()
                    if _is_known(values[i])
                }
                for i in range(part.sizes["step"])
            ],
        )


def _is_known(value: float) -> bool:
    # The store has NaN where nothing was logged.
    return not math.isnan(value)


def _began(run: Run) -> float:
    """Return when the recording began, in seconds since 1970, as far as the store says."""
    try:
        return datetime.fromisoformat(run.stored.document.created).timestamp()
    except ValueError:
        return time.time()


def _send_geometries(run: Run, sink: Sink) -> int:
    """Send means over epochs, or ranges of steps, of all stored geometries, and return their number."""
    ends = _last_steps(run)
    began, elapsed = _began(run), _wall_times(run)
    n_sent = 0
    for stored in stored_geometries(run):
        geometry = read_geometry(run, stored.group)
        if geometry is None:
            continue
        means = means_for_tables(geometry).compute()
        dim = time_of(means)
        for i in range(means.sizes[dim]):
            one = means.isel({dim: i})
            step = ends[int(one["epoch"])] if dim == "epoch" else int(one["last_step"])
            values = _of_epoch(one, stored.group)
            sink.scalars(step, values, time=began + float(elapsed[step]))
        n_sent += 1
    return n_sent


def _of_epoch(means: xr.Dataset, group: str) -> dict[str, float]:
    values = {
        f"geometry_{group}/{name}{ending}": float(means[f"{name}{ending}"])
        for name in QUANTITIES
        for ending in ("", "_stderr")
    }
    return {name: value for name, value in values.items() if _is_known(value)}


def _last_steps(run: Run) -> Mapping[int, int]:
    """Return the last step of every epoch."""
    epochs = np.asarray(run.stored.epochs)
    return {int(epoch): step for step, epoch in enumerate(epochs.tolist())}


def _wall_times(run: Run) -> Any:
    times = run.steps["wall_time"].values
    return np.where(np.isfinite(times), times, 0.0)
