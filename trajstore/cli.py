"""Command line: what a store holds, and what one would take."""

from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from trajstore.command_line import run_command_line
from trajstore.plan_command import plan
from trajstore.reader import Run, open_run


def info(store: Positional[Path]) -> None:
    """Show what a store holds, how large it is, and how the run ended.

    Parameters
    ----------
    store : Path
        Trajectory store to read.
    """
    run = open_run(store)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in _facts(run).items():
        table.add_row(name, Text(text))
    Console().print(table)


def _facts(run: Run) -> dict[str, str]:
    spec, layout = run.spec, run.layout
    sizes = {
        "steps": _bytes_below(run.path, exclude=("references", "snapshots", "final")),
        "references": _bytes_below(run.path / "references"),
    }
    kept = _bytes_below(run.path / "snapshots") + _bytes_below(run.path / "final")
    sketch = (
        "exact: whole gradients and iterates"
        if spec.exact
        else f"{spec.sketch_bits} signs, basis of {spec.basis}, {spec.probes} probes"
    )
    facts = {
        "store": str(run.path),
        "status": f"{run.status}, begun {run.attributes['created']}",
        "parameters": f"{layout.n_params:,} in {len(layout.names)} tensors",
        "steps": f"{run.n_steps:,}",
        "epochs, windows": f"{run.n_epochs:,}, {run.n_windows:,}",
        "recorded": sketch,
        "scalars": ", ".join(run.attributes["metrics"]) or "none",
        "snapshots": ", ".join(run.snapshots) or "none",
    }
    total = sum(sizes.values()) + kept
    facts["size"] = (
        f"{decimal(total)}: {decimal(sizes['steps'])} steps, "
        f"{decimal(sizes['references'])} references, {decimal(kept)} other iterates"
    )
    if run.n_steps:
        per_step, gradient = sizes["steps"] / run.n_steps, 4 * layout.n_params
        facts["bytes per step"] = (
            f"{decimal(round(per_step))}, against {decimal(gradient)} of a float32 gradient"
        )
        facts["compression"] = (
            f"{gradient / per_step:.3g} x for a step; all gradients would take "
            f"{decimal(gradient * run.n_steps)}, {gradient * run.n_steps / total:.3g} x "
            "the whole store"
        )
    return facts


def _bytes_below(path: Path, exclude: tuple[str, ...] = ()) -> int:
    total = 0
    for file in path.rglob("*"):
        if file.relative_to(path).parts[0] not in exclude:
            # A file may be renamed while a run is being recorded.
            with suppress(FileNotFoundError):
                total += file.stat().st_size if file.is_file() else 0
    return total


def main() -> None:
    """Run the command line."""
    run_command_line(
        {"info": info, "plan": plan},
        prog="traj-store",
        description="Look into trajectory stores, and plan them.",
    )


if __name__ == "__main__":
    main()
