"""The command ``traj-store plan``: predict the size and the errors of a recording."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

import trajstore
from trajstore.cli.console import print_json
from trajstore.format.arrays import ENDED
from trajstore.format.layout import Layout
from trajstore.format.run_spec import BASIS, PROBES, RunSpec
from trajstore.planning.errors import N_MEASURED, ErrorRange, Rate
from trajstore.planning.estimate import Plan, guess_layout, plan_recording
from trajstore.planning.measured import (
    DECAYED_END_RATIOS,
    END_ERROR_RATIOS,
    Optimizer,
)
from trajstore.planning.process import PROCESS_MEMORY
from trajstore.planning.search import best_plan, with_longer_windows

UNITS: Final = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}

N_RANGES: Final = 20
"""Number of ranges of steps whose means the tables of runs without epochs have."""

PARTS: Final = {
    "gradients, displacements": ("gradient", "displacement"),
    "signs": ("signs", "scales"),
    "tables": ("tables",),
    "probes": ("gradient_probes", "displacement_probes", "probe_scales"),
    "scalars": ("scalars", "epoch", "iteration", "window"),
}
"""Rows of the printed table, and the arrays whose sizes each row adds up."""


def plan(
    *,
    steps: int,
    params: float | None = None,
    tensors: int | None = None,
    model: str | None = None,
    steps_per_epoch: int | None = None,
    reference_every: int | None = None,
    basis: int = BASIS,
    probes: int = PROBES,
    float64: bool = False,
    exact: bool = False,
    rate: Rate = "constant",
    optimizer: Optimizer | None = None,
    like: str | None = None,
    stderr: float | None = None,
    disk: str | None = None,
    json: bool = False,
) -> None:
    """Predict the disk space, the memory and the error of a recording.

    Give --stderr to plan the smallest store whose error is at most this value.

    Give --disk to plan the most precise store that is at most this large.

    Without these options, the plan uses the recorder's defaults.

    Parameters
    ----------
    steps : int
        Optimizer steps in the run.
    params : float, optional
        Number of parameters of the network, such as 11e6.
    tensors : int, optional
        Number of parameter tensors; estimated by default.
    model : str, optional
        Function that returns the model, written module:factory; replaces --params and
        --tensors.
        Modules in the working directory can be imported.
    steps_per_epoch : int, optional
        Optimizer steps in an epoch.
    reference_every : int, optional
        Steps in a window. Default: chosen as a recorder does, or for --stderr or --disk.
    basis : int, default: 3
        Number of directions in which gradients are stored exactly; 0 for none.
    probes : int, default: 1024
        Number of fixed random projections, a power of two.
    float64 : bool, default: False
        Plan for parameters of float64, or a recorder with float64=True: rows and parameter
        vectors take up to twice the bytes.
    exact : bool, default: False
        Plan a recorder with exact=True, for small networks: whole gradients, and no errors.
    rate : {"constant", "linear", "cosine"}, default: "constant"
        Course of the learning rate; linear and cosine decay to 0. For warmup, a stable rate and
        a decay, choose constant. A cosine that ends above 0 lies between constant and cosine.
    optimizer : {"sgd", "momentum", "adaptive"}, optional
        Kind of optimizer: SGD without or with momentum, or another one. Means of epochs
        are most precise with SGD.
    like : str, optional
        Finished run of the same network, with the same optimizer and course of the learning
        rate: errors are extrapolated from its errors, with any sketch, probes and windows. It
        replaces --params, --tensors and --model.
    stderr : float, optional
        Largest standard error of gamma in one step between the first and the last epoch.
    disk : str, optional
        Largest size of the store, such as 800MB or 5GB.
    json : bool, default: False
        Print one JSON document instead of tables.

    Raises
    ------
    ValueError
        If arguments contradict each other or cannot be met.
    """
    if stderr is not None and disk is not None:
        raise ValueError(
            f"Give --stderr or --disk, not both: got {stderr:g} and {disk}. The plan "
            "minimises one for a given value of the other."
        )
    if exact and (stderr is not None or disk is not None):
        raise ValueError(
            "An exact recording has one size and no errors: leave out --stderr and --disk, or "
            "leave out --exact."
        )
    if stderr is not None and not stderr > 0:
        raise ValueError(f"--stderr must be positive, got {stderr:g}.")
    recorded = None
    if like is None:
        layout = _layout(params, tensors, model)
    else:
        # Reading needs Zarr and xarray, which take half a second to import.
        planning = import_module("trajstore.planning.recorded")
        similar = trajstore.open_run(like)
        recorded = planning.recorded_errors(similar, rate=rate)
        optimizer = optimizer or planning.optimizer_of(similar)
        layout = similar.layout
        if params is not None or model is not None:
            layout = _layout(params, tensors, model)
    run: Any = {
        "n_steps": steps,
        "steps_per_epoch": steps_per_epoch,
        "reference_every": reference_every,
        "basis": basis,
        "probes": probes,
        "float64": float64,
        "rate": rate,
        "optimizer": optimizer,
        "like": recorded,
    }
    if stderr is not None:
        chosen = best_plan(layout, **run, stderr=stderr)
    elif disk is not None:
        chosen = best_plan(layout, **run, disk=parse_size(disk))
    else:
        chosen = plan_recording(layout, **run, exact=exact)
    if json:
        print_json(_document(chosen))
        return
    _print(
        chosen,
        tensors_are_estimated=model is None and tensors is None and like is None,
        is_best=stderr is not None or disk is not None,
    )


def parse_size(text: str) -> float:
    """Parse a number of bytes: ``5GB``, ``1.5 TB``, ``800M``, ``64 MiB``."""
    number = r"(\d+\.?\d*(?:e\d+)?|\.\d+)"
    match = re.fullmatch(rf"{number} *([kmgt]?)(i?)b?", text.strip().lower())
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"Expected a size such as 800MB or 5GB, got {text!r}.")
    unit = 1024 ** list(UNITS).index(match[2]) if match[3] else UNITS[match[2]]
    return float(match[1]) * unit


def _layout(params: float | None, tensors: int | None, model: str | None) -> Layout:
    if model is not None:
        if params is not None or tensors is not None:
            raise ValueError(
                "--model has its own parameters and tensors: give it, or --params and "
                "--tensors, not both."
            )
        return layout_of_model(model)
    if params is None:
        raise ValueError(
            "How large is the network? Give --params, such as 11e6, or --model module:factory."
        )
    # This form of the check also refuses infinity and NaN.
    if not 1 <= params < 1 << 40:
        raise ValueError(f"--params must lie between 1 and 2**40, got {params:g}.")
    if tensors is not None and not 1 <= tensors <= params:
        raise ValueError(
            f"--tensors must lie between 1 and the number of parameters, {params:g}; got "
            f"{tensors}."
        )
    return guess_layout(round(params), tensors)


def layout_of_model(path: str) -> Layout:
    """Return the layout of the trainable parameters of the model that a factory returns."""
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ValueError(f"--model must have the form module:factory, got {path!r}.")
    with _working_directory_importable():
        try:
            module = import_module(module_name)
        except ImportError as error:
            raise ValueError(
                f"--model {path}: importing {module_name!r} failed: {error}."
            ) from error
        factory: Any = getattr(module, name, None)
        if not callable(factory):
            raise ValueError(
                f"--model {path}: the module {module_name!r} has no function {name!r}."
            )
        model = factory()
    if not hasattr(model, "named_parameters"):
        raise ValueError(
            f"--model {path}: {name}() must return a torch.nn.Module, got "
            f"{type(model).__name__}."
        )
    shapes = {
        key: tuple(p.shape) for key, p in model.named_parameters() if p.requires_grad
    }
    layout = Layout(tuple(shapes), tuple(shapes.values()))
    if layout.size == 0:
        raise ValueError(f"--model {path}: the model has no parameters to train.")
    return layout


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Put the working directory on ``sys.path``, as ``python -m`` does."""
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


def _print(plan: Plan, *, tensors_are_estimated: bool, is_best: bool) -> None:
    console = Console()
    console.print(_sizes(plan))
    console.print()
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    described = _facts(
        plan, tensors_are_estimated=tensors_are_estimated, is_best=is_best
    )
    for name, text in described.items():
        facts.add_row(name, text)
    console.print(facts)
    if plan.spec.exact:
        console.print("\nPass to Recorder:\n")
        console.print(_arguments(plan), markup=False, highlight=False, soft_wrap=True)
        return
    source = (
        f"{N_MEASURED} runs of 0.005 to 0.8 million parameters: typical (8 of 10 runs). Record a "
        "short run of yours, and give --like, to know them better."
    )
    if plan.like is not None:
        source = (
            "the errors of the recorded run: typical (another run of the same network)."
        )
    console.print(f"\nErrors of gamma are extrapolated from {source}")
    console.print("\nPass to Recorder:\n")
    console.print(_arguments(plan), markup=False, highlight=False, soft_wrap=True)


def _document(plan: Plan) -> dict[str, Any]:
    """Return a plan for programs: sizes in bytes, errors of gamma, and arguments of Recorder."""
    spec = plan.spec
    return {
        "parameters": plan.layout.n_params,
        "tensors": len(plan.layout.names),
        "steps": plan.n_steps,
        "windows": plan.n_windows,
        "bytes": round(plan.disk),
        "bytes_per_step": round(sum(plan.bytes_per_step.values())),
        "memory": round(plan.memory),
        "memory_on_accelerator": round(plan.memory_with_parameters),
        "memory_of_host": round(plan.memory_of_host),
        "memory_of_process": PROCESS_MEMORY,
        "stderr_of_step": plan.stderr()._asdict(),
        "stderr_of_epoch": (
            plan.stderr(mean_of=spec.steps_per_epoch)._asdict()
            if spec.steps_per_epoch
            else None
        ),
        "stderr_of_range": (
            None
            if spec.steps_per_epoch
            else plan.stderr(mean_of=-(-plan.n_steps // N_RANGES))._asdict()
        ),
        "arguments": {
            **({"exact": True} if spec.exact else {}),
            "sketch_bits": spec.sketch_bits,
            "basis": spec.basis,
            "probes": spec.probes,
            "reference_every": plan.windows.length,
            "total_steps": plan.n_steps,
        },
    }


def _sizes(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("on disk")
    table.add_column("per step", justify="right")
    table.add_column("run", justify="right")
    for title, names in PARTS.items():
        step = sum(plan.bytes_per_step.get(name, 0.0) for name in names)
        if not step:
            continue
        table.add_row(title, _bytes(step), _bytes(step * plan.n_steps))
    anchors = dict(plan.bytes_of_anchors)
    keyframes = anchors.pop("references/keyframes")
    sums = sum(anchors.pop(name, 0) for name in ENDED)
    table.add_row("anchors", "", _bytes(sum(anchors.values())))
    if sums:
        table.add_row("sums over each window's steps", "", _bytes(sums))
    table.add_row("every 32nd anchor in full", "", _bytes(keyframes))
    table.add_row("final parameters", "", _bytes(plan.bytes_of_final))
    table.add_row("metadata", "", _bytes(plan.bytes_of_metadata))
    per_step = _bytes(sum(plan.bytes_per_step.values()))
    table.add_row("total", per_step, _bytes(plan.disk), style="bold")
    return table


def _facts(plan: Plan, *, tensors_are_estimated: bool, is_best: bool) -> dict[str, str]:
    # `is_best` is whether the plan is the best one for a given error or size.
    spec, layout = plan.spec, plan.layout
    estimated = " (estimated)" if tensors_are_estimated else ""
    longest = min(int(plan.windows.lengths.max()), plan.windows.length)
    shortest = min(int(plan.windows.lengths.min()), longest)
    length = f"{shortest:,} to {longest:,}" if shortest < longest else f"{longest:,}"
    where = ", the shortest at both ends" if shortest < longest else ""
    facts = {
        "parameters": f"{layout.n_params:,} in {len(layout.names)} tensors{estimated}",
        "sketch": f"{describe_sketch(spec)} per step" if not spec.exact else "none",
        "windows": (
            f"{plan.n_windows:,} of {length} steps{where}; "
            f"one anchor each{_windows_reason(plan)}"
        ),
        "memory": _memory(plan),
    }
    if spec.exact:
        facts["error of a step"] = (
            "none but rounding, about 1e-7 of the numbers (1e-16 in float64)"
        )
        return facts
    facts["error of a step"] = _range(plan.stderr())
    if spec.steps_per_epoch:
        facts["error of an epoch mean"] = _range(
            plan.stderr(mean_of=spec.steps_per_epoch)
        )
    else:
        n_range = -(-plan.n_steps // N_RANGES)
        facts[f"error of a mean of {n_range:,} steps"] = (
            f"{_range(plan.stderr(mean_of=n_range))}; a {N_RANGES}th of the run"
        )
    ends = "first, last epoch" if spec.steps_per_epoch else "start, end of run"
    facts[ends] = (
        f"errors {END_ERROR_RATIOS[0]} to {END_ERROR_RATIOS[1]} times as large"
    )
    if plan.rate != "constant":
        low, high = DECAYED_END_RATIOS
        facts["last fifth of run"] = (
            f"means {low} to {high} times as uncertain, because the rate decays to 0"
        )
    if not is_best and (longer := with_longer_windows(plan)) is not None:
        facts["smaller store"] = (
            f"anchors take {plan.share_of_anchors:.0%} of this store; with --reference-every "
            f"{longer.windows.length} it has {_bytes(longer.disk)}, and --disk finds the most "
            "precise store of a size"
        )
    return facts


def _memory(plan: Plan) -> str:
    """Say how much memory a recording adds, and where."""
    vectors = plan.memory / (4 * plan.layout.n_params)
    # The vectors of a small network are a small part of the memory.
    size = f", {vectors:.1f} float32 vectors of the parameters" if vectors < 20 else ""
    return (
        f"{_bytes(plan.memory)} with parameters on a CPU{size}; on an accelerator "
        f"{_bytes(plan.memory_with_parameters)}, and up to {_bytes(plan.memory_of_host)} on its "
        f"host; and about {_bytes(PROCESS_MEMORY)} once for the process, for libraries and compiled loops"
    )


def _windows_reason(plan: Plan) -> str:
    """Return why windows are not epochs, and what this means for targets."""
    spec = plan.spec
    if spec.steps_per_epoch is None and spec.reference_every is None:
        reason = plan.windows_reason or "the run has no epochs"
        return f"; {reason}"
    if not plan.windows_reason:
        return ""
    targets = ""
    if spec.shared_epochs > 1:
        targets = (
            f"; with reference_every={spec.steps_per_epoch} every epoch can be a target"
        )
    return f"; {plan.windows_reason}{targets}"


def describe_sketch(spec: RunSpec) -> str:
    """Return the size of a step's sketch in words."""
    if spec.bits_per_number == 1:
        return f"{spec.sketch_numbers:,} signs"
    return f"{spec.sketch_numbers:,} numbers of {spec.bits_per_number} bits"


def _arguments(plan: Plan) -> str:
    spec = plan.spec
    sketch = "exact=True, " if spec.exact else f"sketch_bits={spec.sketch_bits}, "
    basis = "" if spec.basis == BASIS else f"basis={spec.basis}, "
    probes = "" if spec.probes == PROBES else f"probes={spec.probes}, "
    float64 = "float64=True, " if spec.float64 else ""
    epochs = f"steps_per_epoch={spec.steps_per_epoch}, " if spec.steps_per_epoch else ""
    windows = f"reference_every={plan.windows.length}, "
    # Without the option, the recorder chooses these windows.
    has_no_option = spec.steps_per_epoch is None and spec.reference_every is None
    if spec.shared_epochs > 1 or has_no_option:
        windows = ""
    end = f"total_steps={plan.n_steps}"
    return f"{sketch}{basis}{probes}{float64}{epochs}{windows}{end}"


def _range(error: ErrorRange) -> str:
    return f"{error.typical:.2g} ({error.low:.2g} to {error.high:.2g})"


def _bytes(number: float) -> str:
    return decimal(round(number))
