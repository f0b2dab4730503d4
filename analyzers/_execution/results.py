"""Compute a dataset and store it next to the run."""

import xarray as xr
from threadpoolctl import threadpool_limits

from analyzers._execution.progress import task_progress
from trajstore.reading.results import write_results
from trajstore.reading.run import Run


def store_result(run: Run, group: str, result: xr.Dataset) -> xr.Dataset:
    """Compute a dataset, store it as `group` of the run's results, and return it loaded."""
    with threadpool_limits(1, user_api="blas"), task_progress("analysing"):
        loaded = result.compute()
    write_results(run, group, loaded)
    return loaded
