"""Connect to a Dask cluster, start one on this machine, or stay on threads."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import dask

MEMORY: Final = {
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 1 << 28,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 1 << 26,
}
"""Let the workers' C library keep memory for the next array instead of returning it.
Dask's default is the opposite, and new pages would cost a third of the time."""


@contextmanager
def connected(
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    dashboard: bool = False,
    report: Path | None = None,
) -> Iterator[Any]:
    """Compute inside the block on a cluster, if one is asked for; yield its client or None."""
    # `scheduler` is the address of a running one, tcp://host:8786. `workers` are processes to
    # start on this machine; `dashboard` starts one per core if nothing else is asked for.
    # `report` is the HTML file of Dask's performance report.
    if scheduler is not None and workers is not None:
        raise ValueError(
            f"Got both `workers` ({workers}) and `scheduler` ({scheduler!r}), which has "
            "workers of its own. Give one of the two."
        )
    is_local = workers is not None or dashboard
    if scheduler is None and not is_local:
        if report is not None:
            raise ValueError(
                "A report needs a cluster, and none was asked for. Give workers, "
                "dashboard or the address of a scheduler as well."
            )
        yield None
        return
    # The import takes half a second, which threads do not need.
    from distributed import Client, LocalCluster, performance_report  # noqa: PLC0415

    with ExitStack() as stack:
        if scheduler is None:
            # One thread each: Python's lock would block more of them. Dask limits BLAS
            # in its workers to one thread as well.
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
