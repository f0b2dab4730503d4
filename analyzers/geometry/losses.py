"""Losses and products with x - x* of a run's gradients, for conditions on losses."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers.geometry.path_geometry import path_geometry
from trajstore.format.arrays import STEP
from trajstore.reading.results import replay_group, replayed_from, results_location
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike, find_target
from trajstore.store.location import open_store

FULL_BATCH = "full_batch"


def gradients_of(run: Run, measurement: str | None) -> Run:
    """Return the run itself, or a measurement in its place.

    Parameters
    ----------
    run : Run
        The run.
    measurement : str or None
        Name of the measurement.

    Returns
    -------
    Run
        Whose steps have the gradients.

    Raises
    ------
    KeyError
        If there is no such measurement; says how to make one.
    """
    if measurement is None:
        return run
    if measurement not in run.measurements:
        how = f"by recorder.measure({measurement!r}, loss=loss) in a loop of your own"
        if measurement == FULL_BATCH:
            how = f"by traj-train run NAME --full-gradients, or {how}"
        raise KeyError(
            f"No measurement {measurement!r} in {run.location}, which has "
            f"{list(run.measurements)}; it is recorded {how}."
        )
    return run.measured(measurement)


def gradient_name(run: Run) -> str:
    """Say what the gradients of a run's steps are gradients of."""
    if run.group.is_measurement:
        return f"measurement {run.group.name!r}"
    return "minibatch"


def recorded_losses(run: Run) -> xr.DataArray:
    """Return the loss of every step.

    Parameters
    ----------
    run : Run
        The run, or a measurement.

    Returns
    -------
    xarray.DataArray
        Loaded, float64, with the coordinates ``step``, ``epoch`` and ``iteration``.

    Raises
    ------
    ValueError
        If there is no scalar ``loss``.
    """
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
    r"""Return :math:`\langle g_k, x_k - x^* \rangle`, and the geometry it is from.

    loLR is that product over |g|^2, and neither it nor its standard error has anything of
    the distance in it; |g| is recorded.

    Parameters
    ----------
    run : Run
        The run, or a measurement.
    reference : str, int, Run or mapping
        The point x*.

    Returns
    -------
    product : xarray.Dataset
        Lazy: ``product`` and ``product_stderr``.
    geometry : xarray.Dataset
        Lazy, as `analyzers.path_geometry` returns it.
    """
    geometry = path_geometry(run, reference=reference)
    grad_sq = run.steps["grad_norm"].values ** 2
    squares = xr.DataArray(grad_sq, dims=STEP)
    long_name = "product of gradient and x - x*"
    names = {
        "product": long_name,
        "product_stderr": f"standard error of the {long_name}",
    }
    variables = {}
    for name, of_lolr in zip(names, ("lolr", "lolr_stderr"), strict=True):
        value = geometry[of_lolr] * squares
        # The product with a gradient of zeros is known, and loLR is not.
        value = value.where(squares != 0, 0.0)
        variables[name] = value.assign_attrs(long_name=names[name], units="1")
    return xr.Dataset(variables, attrs=geometry.attrs), geometry


def replayed(
    run: Run,
    reference: TargetLike = "final",
    *,
    otherwise: str = "give an array as reference_losses",
) -> xr.Dataset:
    """Return what ``traj-train replay`` left beside a run.

    Parameters
    ----------
    run : Run
        The run.
    reference : str, int, Run or mapping, default: "final"
        The point x*.
    otherwise : str
        What else the user can do if there is nothing, for the error.

    Returns
    -------
    xarray.Dataset
        Loaded: ``reference_loss`` (step), the loss of every step's batch at x*, and
        ``full_reference_loss``, that of all training data.

    Raises
    ------
    ValueError
        If there is nothing, or if it is of another state of the run; says which command
        makes it.
    KeyError, TypeError
        As `analyzers.path_geometry`, for the reference.
    """
    point = find_target(run, reference)
    store = open_store(results_location(run), read_only=True)
    command = ""
    # The command line takes no arrays.
    if not isinstance(reference, Mapping):
        command = f"compute them with {_replay_command(run, reference)}, or "
    try:
        found: xr.Dataset = xr.open_zarr(
            store, group=replay_group(point), consolidated=False, chunks=None
        ).load()
    except FileNotFoundError as error:
        raise ValueError(
            f"The losses of the batches at x* are not known for {run.location}; {command}"
            f"{otherwise}."
        ) from error
    if found.attrs.get("computed_from") != replayed_from(run, point):
        raise ValueError(
            f"The losses at x* beside {run.location} are those of another state of the "
            f"run, or of another x*; {command}{otherwise}."
        )
    return found


def _replay_command(run: Run, reference: TargetLike) -> str:
    """Return the command that computes the losses of batches at a point."""
    command = f"traj-train replay {run.location}"
    if isinstance(reference, str) and reference == "final":
        return command
    text = reference.location if isinstance(reference, Run) else str(reference)
    return f"{command} --reference {text}"


def by_step(values: npt.ArrayLike | xr.DataArray, run: Run, name: str) -> xr.DataArray:
    """Check that there is a number for every step.

    Parameters
    ----------
    values : array_like or xarray.DataArray
        One-dimensional.
    run : Run
        The run.
    name : str
        What they are called, for the error.

    Returns
    -------
    xarray.DataArray
        float64, along ``step``, without coordinates.

    Raises
    ------
    ValueError
        If they are fewer or more.
    """
    array = np.asarray(values, np.float64)
    if array.shape != (run.n_steps,):
        raise ValueError(
            f"`{name}` must be one number for each of the {run.n_steps} steps of "
            f"{run.location}, got the shape {array.shape}."
        )
    return xr.DataArray(array, dims=STEP)
