"""Compute tasks with a progress bar, on the threads of this process or on a cluster."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import dask.base
from dask.callbacks import Callback
from dask.delayed import Delayed
from rich.console import Console
from rich.progress import Progress
from threadpoolctl import threadpool_limits

from trajstore.cli.console import hides_progress, make_console


def compute(tasks: Sequence[Delayed], description: str) -> None:
    """Compute tasks for their side effects, and show their progress."""
    # The tasks run on the Dask client of this process if there is one, else on threads,
    # with one BLAS thread each.
    client = current_client()
    if client is not None:
        _compute_on(client, tasks, description)
        return
    with threadpool_limits(1, user_api="blas"), task_progress(description):
        dask.base.compute(*tasks)  # type: ignore[no-untyped-call]


def current_client() -> Any:
    """Return the `distributed.Client` of this process, or None."""
    # The import of `distributed` is slow, and a process with a client has imported it already.
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.Client.current()
    except ValueError:
        return None


def _compute_on(client: Any, tasks: Sequence[Delayed], description: str) -> None:
    distributed = sys.modules["distributed"]
    futures = client.compute(list(tasks))
    try:
        with _bars() as progress:
            bar = progress.add_task(description, total=len(futures))
            for future in distributed.as_completed(futures):
                future.result()
                progress.advance(bar)
    finally:
        # After a failure or Ctrl-C nobody needs the remaining tasks.
        client.cancel(futures)


def _bars() -> Progress:
    """Return progress bars on stderr, so that a command's output can be piped."""
    console: Console = make_console(stderr=True)
    if console.is_jupyter and find_spec("ipywidgets") is None:
        # Without ipywidgets, rich would warn in a notebook, and show nothing.
        console = Console(force_jupyter=False, force_terminal=False)
    return Progress(console=console, disable=hides_progress())


@contextmanager
def task_progress(description: str) -> Iterator[None]:
    """Show the progress of the tasks that are computed inside the block."""
    with _bars() as progress:
        bar = progress.add_task(description, total=None)

        def start(_graph: Any, state: dict[str, Any]) -> None:
            waiting = len(state["waiting"]) + len(state["ready"])
            progress.update(bar, total=waiting, completed=0)

        def advance(*_: Any) -> None:
            progress.advance(bar)

        with Callback(start_state=start, posttask=advance):  # type: ignore[no-untyped-call]
            yield
