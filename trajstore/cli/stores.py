"""The commands of ``traj-store`` that read or mend a store."""

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal
from rich.table import Table
from tyro.conf import Positional

import trajstore
from trajstore import reading
from trajstore import store as storage
from trajstore.cli.console import make_console, print_json, progress
from trajstore.cli.plan import describe_sketch
from trajstore.format.shown import shown

if TYPE_CHECKING:
    from trajstore.reading.run import Run


def info(store: Positional[str], *, json: bool = False) -> None:
    """Show the contents, the size and the status of a store.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    json : bool, default: False
        Print one JSON document instead of the table.
    """
    run = trajstore.open_run(store)
    if json:
        print_json(_document(run))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in _facts(run).items():
        table.add_row(name, shown(text))
    make_console().print(table)


def verify(store: Positional[str], *, json: bool = False) -> None:
    """Read every chunk of a store, and list the damage and the data lost with it.

    The exit status is 1 if there is any damage. Steps that only the journal of a run that was
    killed holds are counted, too.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    json : bool, default: False
        Print one JSON document instead of sentences.
    """
    run = trajstore.open_run(store)
    listed = list(reading.problems(run, track=partial(progress, description="reading")))
    console = make_console()
    n_chunks = len(reading.all_chunks(run))
    # The steps of a running recording go to the store when its buffer is full.
    n_in_journal = 0
    if run.status != "running" and not listed:
        n_in_journal = storage.steps_in_journal(run.location, run.stored.document)
    if json:
        document = {
            "store": run.location,
            "problems": [str(problem) for problem in listed],
            "chunks": n_chunks,
            "steps": run.n_steps,
            "steps_in_journal": n_in_journal,
            "protection": reading.protection(run),
        }
        print_json(document)
    else:
        for problem in listed:
            console.print(shown(str(problem)), soft_wrap=True)
        n = len(listed)
        summary = f"{n} problem{'s' if n > 1 else ''}" if n else "No problem"
        text = (
            f"{summary} in {n_chunks:,} chunks, {run.n_steps:,} steps. "
            f"{reading.protection(run)}"
        )
        console.print(text, highlight=False, soft_wrap=True)
        if n_in_journal:
            text = (
                f"The journal holds {n_in_journal:,} more steps, which are not in the store. Run\n"
                f"traj-store recover {shown(run.location)}\nor resume the recording."
            )
            console.print(text, highlight=False, soft_wrap=True)
    if listed:
        sys.exit(1)


def recover(store: Positional[str]) -> None:
    """Write to the store the steps that only the journal holds.

    Resuming the recording does the same; use this if it will not be resumed.

    Parameters
    ----------
    store : str
        Path of the trajectory store.
    """
    n_recovered = trajstore.recover(store)
    n_steps = trajstore.open_run(store).n_steps
    make_console().print(f"Recovered {n_recovered:,} steps; the store has {n_steps:,}.")


def _sizes(run: "Run") -> dict[str, int]:
    """Return the bytes of the parts of a store."""
    total, anchors, measured, *vectors = (
        storage.bytes_below(run.stored.store, prefix)
        for prefix in ("", "references", "measurements", "snapshots", "final")
    )
    whole = sum(vectors)
    return {
        "steps": total - anchors - measured - whole,
        "measurements": measured,
        "anchors": anchors,
        "snapshots and final": whole,
    }


def _document(run: "Run") -> dict[str, Any]:
    """Return what is known of a store, for programs."""
    document = run.stored.document
    return {
        "store": run.location,
        "written_by": document.written_by,
        "format_version": document.version,
        "status": run.status,
        "created": document.created,
        "parameters": run.layout.n_params,
        "tensors": len(run.layout.names),
        "steps": run.n_steps,
        "epochs": run.n_epochs,
        "windows": run.n_windows,
        "recorded": {
            name: getattr(run.spec, name)
            for name in ("sketch_bits", "basis", "probes", "exact", "seed")
        },
        "scalars": list(run.metrics),
        "snapshots": list(run.snapshots),
        "measurements": {name: run.measured(name).n_steps for name in run.measurements},
        "resumes": [dict(resumption) for resumption in document.resumes],
        "has_journal": storage.has_journal(run.location),
        "bytes": _sizes(run),
    }


def _facts(run: "Run") -> dict[str, str]:
    spec, layout = run.spec, run.layout
    parts = _sizes(run)
    total, steps = sum(parts.values()), parts["steps"]
    basis = f"basis of {spec.basis}" if spec.basis else "no basis"
    sketch = (
        "exact: whole gradients and parameters"
        if spec.exact
        else f"{describe_sketch(spec)}, {basis}, {spec.probes} probes"
    )
    has_epochs = run.n_epochs > 1 or spec.steps_per_epoch
    facts = {
        "store": run.location,
        "written by": run.stored.document.written_by or "an older trajstore",
        "status": f"{run.status}, started {run.stored.document.created[:19]} UTC",
        "parameters": f"{layout.n_params:,} in {len(layout.names)} tensors",
        "steps": f"{run.n_steps:,}",
        "epochs, windows": f"{f'{run.n_epochs:,}' if has_epochs else 'none'}, {run.n_windows:,}",
        "recorded": sketch,
        "scalars": ", ".join(run.metrics) or "none",
        "snapshots": ", ".join(run.snapshots) or "none",
    }
    if run.measurements:
        facts["measurements"] = ", ".join(
            f"{name} ({run.measured(name).n_steps:,})" for name in run.measurements
        )
    if resumes := run.stored.document.resumes:
        missing = sum(resumption["n_missing"] for resumption in resumes)
        facts["resumed"] = f"{len(resumes)} times, with {missing:,} steps missing"
    if storage.has_journal(run.location):
        facts["journal"] = "may hold more steps; run traj-store recover"
    sizes = [f"{decimal(size)} {name}" for name, size in parts.items() if size]
    facts["size"] = f"{decimal(total)}: {', '.join(sizes)}"
    if run.n_steps:
        per_step = steps / run.n_steps
        gradient = (8 if spec.float64 else 4) * layout.n_params
        facts["bytes per step"] = (
            f"{decimal(round(per_step))}, compared with {decimal(gradient)} for a "
            f"{spec.float_type} gradient"
        )
        facts["compression"] = (
            f"{gradient / per_step:.3g} x for a step; all gradients would need "
            f"{decimal(gradient * run.n_steps)}, {gradient * run.n_steps / total:.3g} x "
            "the whole store"
        )
        if per_step > 2 * gradient and not spec.exact:
            facts["compression"] += (
                f"; exact=True stores such a small network without errors, in {decimal(2 * gradient)} "
                "a step before compression"
            )
    return facts
