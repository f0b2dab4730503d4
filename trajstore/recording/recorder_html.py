"""Show a recorder in a notebook: what it records, its progress, and a sparkline."""

from typing import Any

from trajstore.format.html import facts
from trajstore.format.run_spec import SchemaError
from trajstore.reading.run import open_run
from trajstore.reading.run_html import size_of, sparkline_of
from trajstore.store.location import is_remote


def recorder_html(recorder: Any) -> str:
    """Return the HTML of a `trajstore.Recorder`; it waits neither for a device nor the disk."""
    title, steps = "trajstore.Recorder", recorder._steps
    if steps is None:
        return facts(title, {"status": "records nothing in this process"})
    session, guard = recorder._session, recorder._guard
    spec, writer = session.spec, session.writer
    is_open = recorder._live() is not None
    status = "recording" if is_open else "closed"
    if not guard.is_recording:
        status += ", nothing more is recorded after an error"
    rows = {
        "store": writer.location if writer is not None else "written by another rank",
        "status": status,
        "steps": f"{steps.position.step:,}",
        "parameters": f"{spec.n_params:,}; layers: {len(spec.names):,}",
    }
    if writer is None or is_remote(writer.location):
        return facts(title, rows)
    try:
        run = open_run(writer.location)
    except (FileNotFoundError, SchemaError):
        return facts(title, rows)
    rows["committed"] = f"{run.n_steps:,} steps, {size_of(run.location)}"
    return facts(title, rows, sparkline_of(run.stored, run.metrics))
