"""A progress bar for what Dask computes in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dask.callbacks import Callback
from rich.progress import Progress


@contextmanager
def task_progress(description: str) -> Iterator[None]:
    """Show how many of the tasks that are computed inside the block are done."""
    with Progress(transient=False) as progress:
        bar = progress.add_task(description, total=None)

        def start(_graph: Any, state: dict[str, Any]) -> None:
            waiting = len(state["waiting"]) + len(state["ready"])
            progress.update(bar, total=waiting, completed=0)

        def finish_one(*_: Any) -> None:
            progress.advance(bar)

        with Callback(start_state=start, posttask=finish_one):  # type: ignore[no-untyped-call]
            yield
