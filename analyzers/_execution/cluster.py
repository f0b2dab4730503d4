"""Where the tasks run: on a cluster that is there, on one of this machine, or on threads."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import dask

MEMORY: Final = {
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 1 << 28,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 1 << 26,
}
"""How the workers' C library keeps memory for the next array instead of giving it back.
Dask asks for the contrary, and new pages would cost a third of the time."""


@contextmanager
def connected(
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    dashboard: bool = False,
    report: Path | None = None,
) -> Iterator[Any]:
    """Let what is computed inside the block run on a cluster, if one is asked for.

    Parameters
    ----------
    scheduler : str, optional
        Address of a running scheduler, ``tcp://host:8786``.
    workers : int, optional
        Worker processes to start on this machine, each with one thread.
    dashboard : bool, default: False
        Start workers on this machine if nothing else says so: as many as it has cores.
    report : Path, optional
        Where Dask's performance report goes, an HTML file.

    Yields
    ------
    distributed.Client or None
        None where threads of this process will compute.

    Raises
    ------
    ValueError
        If both a scheduler and workers are asked for, or a report without a cluster.
    """
    if scheduler is not None and workers is not None:
        raise ValueError(
            f"Workers were asked for ({workers}) beside the scheduler {scheduler!r}, "
            "which has its own. Give one of both."
        )
    is_local = workers is not None or dashboard
    if scheduler is None and not is_local:
        if report is not None:
            raise ValueError(
                "A report is of a cluster's work, and none was asked for. Give workers, "
                "dashboard or the address of a scheduler as well."
            )
        yield None
        return
    # Half a second that is spared where threads compute.
    from distributed import Client, LocalCluster, performance_report  # noqa: PLC0415

    with ExitStack() as stack:
        if scheduler is None:
            # One thread each: Python's lock would make more of them wait. Dask lets
            # BLAS in its workers use one as well.
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
