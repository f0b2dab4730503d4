"""Compute a dataset and store it next to the run."""

from collections.abc import Iterator
from contextlib import contextmanager

import dask.config
import dask.threaded
import xarray as xr
from threadpoolctl import threadpool_limits

from analyzers._execution.progress import current_client, task_progress
from trajstore.reading.results import write_results
from trajstore.reading.run import Run


def store_result(run: Run, group: str, result: xr.Dataset) -> xr.Dataset:
    """Compute a dataset, store it as `group` of the run's results, and return it loaded."""
    with threadpool_limits(1, user_api="blas"), task_progress("analysing"):
        loaded = load(result)
    write_results(run, group, loaded)
    return loaded


def load(result: xr.Dataset) -> xr.Dataset:
    """Compute a dataset on the Dask client of this process if there is one, else on threads."""
    # Unless it is given a function, Dask imports `distributed` to look for a client.
    return result.compute(scheduler=None if current_client() else dask.threaded.get)


@contextmanager
def threads_without_client() -> Iterator[None]:
    """Let Dask compute on threads in this block, unless this process has a Dask client."""
    # Unless it is told, Dask imports `distributed` to look for a client.
    if current_client():
        yield
        return
    with dask.config.set(
        {"scheduler": dask.threaded.get, "array.rechunk.method": "tasks"}
    ):
        yield
