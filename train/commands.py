"""The commands of ``traj-train``: train workloads, and record or measure the runs."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table
from tyro.conf import Positional

import train
import trajstore
from train.settings import Training
from train.workloads.known import KNOWN
from trajstore import reading
from trajstore.cli.console import make_console, print_json, progress
from trajstore.format.attrs import BRANCH
from trajstore.format.run_spec import BASIS, SKETCH_BITS

ChosenTraining = Annotated[
    Training,
    tyro.conf.arg(
        constructor=tyro.extras.subcommand_type_from_defaults(
            {name: workload.settings for name, workload in KNOWN.items()},
            {name: workload.summary for name, workload in KNOWN.items()},
            prefix_names=False,
        )
    ),
]


def run(
    training: ChosenTraining,
    *,
    out: Path,
    updates: bool = False,
    exact: bool = False,
    sketch_bits: int = SKETCH_BITS,
    basis: int = BASIS,
    branch_at: tuple[int, ...] = (),
) -> None:
    """Train a workload once and record the run.

    Parameters
    ----------
    training : Training
        Workload and its settings.
    out : Path
        Path of the new store; must not exist yet.
    updates : bool, default: False
        Also record updates: the change in the parameters at every step.
    exact : bool, default: False
        Store whole gradients and iterates instead of sketches.
    sketch_bits : int, default: 65536
        Number of bits in the sketch of each gradient; a power of two.
    basis : int, default: 3
        Number of directions along which gradients are known exactly; 0 for none.
    branch_at : tuple of int, default: ()
        Epochs at the start of which other runs can branch off (see the branch command).
        Each epoch leaves a snapshot in the store and a checkpoint next to the store.
    """
    train.protocols.record.record(
        training,
        out,
        partial(progress, description="recording"),
        updates=updates,
        exact=exact,
        sketch_bits=sketch_bits,
        basis=basis,
        branch_at=branch_at,
    )
    make_console().print(
        f"Recorded {out}. Next: traj-analyze geometry {out}",
        markup=False,
        soft_wrap=True,
    )


def branch(
    store: Positional[Path],
    *,
    at_epoch: int,
    lr_scale: tuple[float, ...],
    epochs: int | None = None,
    out: Path | None = None,
    data_dir: str | None = None,
    device: str | None = None,
) -> None:
    """Branch off a run at an epoch with scaled learning rates, and record the branches.

    Everything else stays the same: the parameters, the buffers, the optimizer state and the
    order of the data. Every branch has its own store, such as epoch-5-lr-0.1.zarr.

    Parameters
    ----------
    store : Path
        Store of the run to branch off, recorded by traj-train run NAME --branch-at EPOCH.
    at_epoch : int
        Epoch at the start of which to branch off; 0 for the beginning of the run.
    lr_scale : tuple of float
        Factors by which to multiply the learning rate, one for each branch.
    epochs : int, optional
        Number of epochs to train; with a smaller learning rate, a branch needs more epochs
        than the run to go as far. Default: the remaining epochs of the run.
    out : Path, optional
        Directory for the stores. Default: RUN.branches, next to the run.
    data_dir : str, optional
        Directory of the data, if the data have moved.
    device : str, optional
        Device, as torch names it. Default: the device of the run.

    Raises
    ------
    FileExistsError
        If the store of a branch exists already.
    ValueError
        If no factor is given.
    """
    if not lr_scale:
        raise ValueError("lr_scale: expected at least one factor, such as 0.1.")
    parent = trajstore.open_run(store)
    paths = [
        train.protocols.branch.branch_path(parent, at_epoch, scale, out)
        for scale in lr_scale
    ]
    # Report the problems of all branches before training the first branch.
    for scale, path in zip(lr_scale, paths, strict=True):
        train.protocols.branch.branch_training(parent, at_epoch, scale, epochs)
        if path.exists() or paths.count(path) > 1:
            raise FileExistsError(
                f"{path} exists already, or was requested twice; choose another --out or "
                "other scales."
            )
    overrides = {"data_dir": data_dir, "device": device}
    for scale, path in zip(lr_scale, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        train.protocols.branch.branch(
            parent,
            at_epoch,
            scale,
            path,
            partial(progress, description=f"learning rate times {scale:g}"),
            epochs=epochs,
            **{name: value for name, value in overrides.items() if value is not None},
        )
    make_console().print(
        f"Recorded {len(paths)} branches, starting from "
        f"{trajstore.open_run(paths[0]).attrs[BRANCH]['start']}.\nNext: traj-analyze compare-branches {store} "
        f"{' '.join(map(str, paths))}",
        markup=False,
        soft_wrap=True,
    )


def two_run(
    training: ChosenTraining,
    *,
    out: Path,
    layers: bool = False,
    direction: str = "gradient",
) -> None:
    """Train twice and measure the geometry exactly, as in the published protocol.

    Parameters
    ----------
    training : Training
        Workload and its settings.
    out : Path
        Path of the new Zarr store, which xarray can open; must not exist yet.
    layers : bool, default: False
        Compute the geometry of each layer (parameter tensor) separately.
    direction : str, default: gradient
        Direction to measure: gradient, update, or the name of one of the run's measurements.

    Raises
    ------
    FileExistsError
        If `out` exists.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already; choose a new path.")
    runs = iter(("first run", "second run"))
    exact = train.protocols.two_run.two_run(
        lambda observe: train.loop.train(
            training, observe, partial(progress, description=next(runs))
        ),
        layers=layers,
        direction=direction,
    )
    exact.to_zarr(out, mode="w-", consolidated=False)
    make_console().print(
        f'Exact geometry in {out}: xarray.open_zarr("{out}", consolidated=False)',
        markup=False,
        soft_wrap=True,
    )


def sweep(
    name: Positional[str],
    *,
    out: Path,
    data: Literal["true", "embedded"] | None = None,
    data_dir: str | None = None,
    measurements: bool = False,
    max_steps: int | None = None,
    device: str | None = None,
) -> None:
    """Record the missing runs of a sweep.

    Complete runs are left alone, and interrupted runs continue from their last checkpoint.

    Parameters
    ----------
    name : str
        Name of a sweep (see the list command), or the path of a TOML file.
    out : Path
        Directory for the stores.
    data : str, optional
        Train on the data sets themselves (true), or on embedded stand-ins.
    data_dir : str, optional
        Directory of the data.
    measurements : bool, default: False
        Record everything that the published code of "No Wrong Turns" measures: updates, the
        gradients of ten fixed batches every 100 steps, and the gradient of all data once per
        epoch. This about doubles the training time.
    max_steps : int, optional
        Number of steps after which every run ends.
    device : str, optional
        Device, as torch names it.
    """
    overrides = {
        "data": data,
        "data_dir": data_dir,
        "max_steps": max_steps,
        "device": device,
    }
    changes = {k: v for k, v in overrides.items() if v is not None}
    if measurements:
        changes |= {"measure_every": 100, "full_gradients": True}
    plan = train.protocols.sweep.load_sweep(name, **changes)
    console = make_console()
    out.mkdir(parents=True, exist_ok=True)
    table = Table("run", "workload", "steps", "status", box=None, pad_edge=False)
    stores = [out / f"{planned.name}.zarr" for planned in plan.runs]
    # Report the problems of all runs before training the first run.
    are_complete = [
        train.protocols.record.is_complete(planned.training, store)
        for planned, store in zip(plan.runs, stores, strict=True)
    ]
    for i, planned in enumerate(plan.runs, 1):
        store, status = stores[i - 1], "already complete"
        if not are_complete[i - 1]:
            status = "resumed" if store.exists() else "recorded"
            label = f"{planned.name} ({i} of {len(plan.runs)})"
            train.protocols.record.record_resumably(
                planned.training,
                store,
                partial(progress, description=label),
                updates=planned.updates or measurements,
            )
        steps = f"{trajstore.open_run(store).n_steps:,}"
        table.add_row(planned.name, planned.training.workload, steps, status)
    console.print(table)
    console.print(
        f"Next: traj-analyze paper --stores {out}", markup=False, soft_wrap=True
    )


def replay(
    store: Positional[str],
    *,
    reference: str = "final",
    lines: bool = False,
    plane: int = 0,
    device: str | None = None,
    data_dir: str | None = None,
) -> None:
    """Evaluate the losses of the recorded batches at another point, or losses along the path.

    The run must contain the indices of its examples: traj-train run NAME --record-samples;
    --lines and --plane need no indices. No backward pass is needed. Results are written to
    RUN.analysis.zarr, next to the store; traj-analyze losses draws those of --lines and --plane.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    reference : str, default: "final"
        The target x*: final, the name of a snapshot, the number of an epoch, step:4500
        for the start of a window, or the path or
        URL of another store, whose final iterate is used.
    lines : bool, default: False
        Instead, evaluate the loss of all training data on the lines from iterates to x*.
    plane : int, default: 0
        Instead, evaluate the loss of all training data on the plane of the path's first two
        principal components, at this number of points in each direction.
    device : str, optional
        Device, as torch names it. Default: the device of the run.
    data_dir : str, optional
        Directory of the data. Default: the directory of the run.
    """
    recorded = trajstore.open_run(store)
    target = reading.read_target(reference, recorded)
    if lines or plane:
        along = train.protocols.replay.losses_along(
            recorded,
            reference=target,
            lines=lines,
            plane=plane,
            track=partial(progress, description="evaluating"),
            device=device,
            data_dir=data_dir,
        )
        for group, losses in along.items():
            reading.write_results(recorded, group, losses)
        make_console().print(
            f"Results: {reading.results_location(recorded)}, groups {', '.join(along)}\n"
            f"Next: traj-analyze losses {store}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return
    result = train.protocols.replay.replay(
        recorded,
        reference=target,
        track=partial(progress, description="replaying"),
        device=device,
        data_dir=data_dir,
    )
    group = reading.replay_group(reading.find_target(recorded, target))
    reading.write_results(recorded, group, result)
    n_known = int(result["reference_loss"].notnull().sum())
    make_console().print(
        f"Computed the losses of {n_known:,} of {recorded.n_steps:,} batches at "
        f"{result.attrs['reference']}: {result.attrs['method']}.\n"
        "Loss of all training data at that point: "
        f"{float(result['full_reference_loss']):.6g}\n"
        f"Results: {reading.results_location(recorded)}, group {group}\n"
        f"Next: traj-analyze alpha-beta {store}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def list_workloads(*, json: bool = False) -> None:
    """List workloads and sweeps.

    Parameters
    ----------
    json : bool, default: False
        Print one JSON document instead of tables.
    """
    console = make_console()
    sweeps = {
        name: train.protocols.sweep.load_sweep(name)
        for name in train.protocols.sweep.sweep_names()
    }
    if json:
        document = {
            "workloads": {name: workload.summary for name, workload in KNOWN.items()},
            "sweeps": {
                name: {"summary": plan.summary, "runs": len(plan.runs)}
                for name, plan in sweeps.items()
            },
        }
        print_json(document)
        return
    table = Table("workload", "description", box=None, pad_edge=False)
    for name, workload in KNOWN.items():
        table.add_row(name, workload.summary)
    console.print(table)
    table = Table("sweep", "description", "runs", box=None, pad_edge=False)
    for name, plan in sweeps.items():
        table.add_row(name, plan.summary, str(len(plan.runs)))
    console.print()
    console.print(table)
