"""Connect to a Dask cluster, start one on this machine, or stay on threads."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import dask

MEMORY: Final = {
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 1 << 28,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 1 << 25,
}
"""Settings that let the C library of a worker keep freed memory for the next array. By
default Dask makes the C library return freed memory to the system, and getting new pages
then takes a third of the computing time."""


@contextmanager
def connected(
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    dashboard: bool = False,
    report: Path | None = None,
) -> Iterator[Any]:
    """Compute the block on a cluster and yield its client; yield None if none is requested."""
    # `scheduler` is the address of a running scheduler, such as tcp://host:8786. `workers` is
    # the number of processes to start on this machine; `dashboard` alone starts one process
    # per core. `report` is the HTML file for Dask's performance report.
    if scheduler is not None and workers is not None:
        raise ValueError(
            f"Got both `workers` ({workers}) and `scheduler` ({scheduler!r}), which has "
            "its own workers. Give only one of these options."
        )
    is_local = workers is not None or dashboard
    if scheduler is None and not is_local:
        if report is not None:
            raise ValueError(
                "A report needs a cluster, and none was requested. Give workers, "
                "dashboard or the address of a scheduler as well."
            )
        yield None
        return
    # The import takes half a second, and computing on threads does not need it.
    from distributed import Client, LocalCluster, performance_report  # noqa: PLC0415

    with ExitStack() as stack:
        if scheduler is None:
            # Each worker has one thread, because Python's global lock would block a second one.
            # Dask also limits BLAS in its workers to one thread.
            stack.enter_context(dask.config.set(MEMORY))
            scheduler = stack.enter_context(
                LocalCluster(  # type: ignore[no-untyped-call]
                    n_workers=workers,
                    threads_per_worker=1,
                    host="127.0.0.1",
                    protocol="tcp://",
                    dashboard_address="127.0.0.1:0",
                )
            )
        client = stack.enter_context(
            Client(scheduler)  # type: ignore[no-untyped-call]
        )
        if report is not None:
            recording = performance_report(  # type: ignore[no-untyped-call]
                filename=str(report)
            )
            stack.enter_context(recording)
        yield client
