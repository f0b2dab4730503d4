"""Read the losses and the products <g, x - x*> that conditions on losses compare."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers._engine.labels import step_coordinates
from analyzers.geometry.path_geometry import path_geometry
from trajstore.format.arrays import STEP
from trajstore.format.attrs import FULL_BATCH, TRAINING, uses_all_data
from trajstore.format.run_spec import SchemaError
from trajstore.reading.results import replay_group, replayed_from, results_location
from trajstore.reading.run import Run
from trajstore.reading.stored_results import (
    CHECKS,
    ExpectedArray,
    check_result,
    open_arrays,
    read_attributes,
)
from trajstore.reading.target import Target, TargetLike, find_target
from trajstore.store.chunks import ChunkError, read_chunk


def gradients_of(run: Run, measurement: str | None) -> Run:
    """Return the run itself, or the named measurement of the run."""
    if measurement is None:
        return run
    if measurement not in run.measurements:
        how = f"by recorder.measure({measurement!r}, loss=loss) in a loop of your own"
        if measurement == FULL_BATCH:
            how = f"by traj-train run NAME --full-gradients, or {how}"
        raise KeyError(
            f"No measurement {measurement!r} in {run.location}, which has "
            f"{list(run.measurements)}; such a measurement is recorded {how}."
        )
    return run.measured(measurement)


def gradient_name(run: Run, *, full_batch: bool = False) -> str:
    """Return a description of a run's gradients: minibatch, full batch, or the measurement."""
    # `full_batch` says so for a run whose attrs do not.
    if run.group.is_measurement:
        return f"measurement {run.group.name!r}"
    is_full = full_batch or uses_all_data(run.attrs)
    return "full batch" if is_full else "minibatch"


def recorded_losses(run: Run) -> xr.DataArray:
    """Return the loss of each step, loaded float64 (step,)."""
    if "loss" not in run.metrics:
        call = "recorder.log(loss=loss)"
        if run.group.is_measurement:
            call = f"recorder.measure({run.group.name!r}, loss=loss)"
        raise ValueError(
            f"The losses of {gradient_name(run)} gradients are not recorded in "
            f"{run.location}; record them with {call}."
        )
    return run.steps["loss"].drop_vars("window").load()


def products(run: Run, reference: TargetLike) -> tuple[xr.Dataset, xr.Dataset]:
    """Return a dataset of <g, x - x*> with its standard error, and the geometry, both lazy."""
    # loLR is the product divided by |g|^2. Neither loLR nor its standard error depends on
    # the distance, and |g| is recorded.
    geometry = path_geometry(run, reference=reference)
    grad_sq = run.steps["grad_norm"].values ** 2
    squares = xr.DataArray(grad_sq, dims=STEP)
    long_name = "product of gradient and x - x*"
    names = {
        "product": long_name,
        "product_stderr": f"standard error of the {long_name}",
    }
    variables = {}
    for name, lolr_name in zip(names, ("lolr", "lolr_stderr"), strict=True):
        value = geometry[lolr_name] * squares
        # The product with a zero gradient is 0, although loLR is undefined.
        value = value.where(squares != 0, 0.0)
        variables[name] = value.assign_attrs(long_name=names[name], units="1")
    return xr.Dataset(variables, attrs=geometry.attrs), geometry


def replayed(
    run: Run,
    reference: TargetLike = "final",
    *,
    otherwise: str = "give an array as reference_losses (on the command line --reference-loss, "
    "if every step uses all data)",
) -> xr.Dataset:
    """Read the stored losses at x*: ``reference_loss`` (step), ``full_reference_loss``."""
    # ``traj-train replay`` computes the loss of each step's batch and the loss of all
    # training data, and stores them next to the run. `otherwise` ends error messages with
    # an alternative for the user.
    point = find_target(run, reference)
    advice = f"{otherwise}."
    # The command line takes no arrays, and replays only what traj-train has trained.
    if not isinstance(reference, Mapping | Target):
        command = f"compute them with {_replay_command(run, reference)}"
        advice = f"{command}, or {otherwise}."
        if TRAINING not in run.attrs:
            advice = f"{otherwise} (for a run of traj-train, {command})."
    location, group = results_location(run), replay_group(point)
    steps = slice(0, run.n_steps)
    shapes = {"reference_loss": (run.n_steps,), "full_reference_loss": ()}
    expected = {name: ExpectedArray(shape) for name, shape in shapes.items()}
    subject = f"The losses at x* next to {run.location}"
    try:
        attributes = read_attributes(location, group) or {}
        computed_from = replayed_from(run, point)
        if attributes and attributes.get("computed_from") != computed_from:
            state = "belong to another state of the run, or to another x*"
            raise ValueError(f"{subject} {state}; {advice}")
        arrays = open_arrays(location, group, expected)
        if not attributes or not arrays:
            of = "" if uses_all_data(run.attrs) else " of the batches"
            what = f"The losses{of} at x* are not known for {run.location}"
            raise ValueError(f"{what}; {advice}")
        losses, checks = {}, attributes.get(CHECKS)
        for name, array in arrays.items():
            values = read_chunk(array, array.ndim * (steps,))
            # Losses of earlier versions have no checks.
            if isinstance(checks, Mapping):
                expected_check, key = checks.get(name), array.path
                check_result(
                    values, computed_from, name, expected=expected_check, key=key
                )
            losses[name] = (array.ndim * (STEP,), values)
    except (SchemaError, ChunkError) as error:
        delete = f"Delete the group {group!r} of {location}, then {advice}"
        raise ValueError(f"{subject} are not valid: {error}. {delete}") from error
    attrs = {"method": str(attributes.get("method", ""))}
    return xr.Dataset(losses, step_coordinates(run), attrs)


def _replay_command(run: Run, reference: TargetLike) -> str:
    """Return the command that computes the losses of batches at a target."""
    command = f"traj-train replay {run.location}"
    if isinstance(reference, str) and reference == "final":
        return command
    text = reference.location if isinstance(reference, Run) else str(reference)
    return f"{command} --reference {text}"


def by_step(values: npt.ArrayLike | xr.DataArray, run: Run, name: str) -> xr.DataArray:
    """Return `values` as float64 (step,), or raise ValueError for another shape."""
    array = np.asarray(values, np.float64)
    if array.shape != (run.n_steps,):
        raise ValueError(
            f"`{name}` must be one number for each of the {run.n_steps} steps of "
            f"{run.location}, got the shape {array.shape}."
        )
    return xr.DataArray(array, dims=STEP)
