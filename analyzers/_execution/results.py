"""Compute a dataset into the store of results beside the run."""

import xarray as xr
from threadpoolctl import threadpool_limits

from analyzers._execution.progress import task_progress
from trajstore.reading import results
from trajstore.reading.run import Run


def store_result(run: Run, group: str, result: xr.Dataset) -> xr.Dataset:
    """Compute a dataset, and write it into the store of results beside the run.

    Parameters
    ----------
    run : trajstore.Run
        What was analysed.
    group : str
        Where in the store; what is there is replaced.
    result : xarray.Dataset
        May be lazy.

    Returns
    -------
    xarray.Dataset
        Loaded.
    """
    with threadpool_limits(1, user_api="blas"), task_progress("analysing"):
        loaded = result.compute()
    results.write_results(run, group, loaded)
    return loaded


def results_location(run: Run) -> str:
    """Return where the results of a run lie: beside it, ``run.analysis.zarr``."""
    return results.results_location(run)
