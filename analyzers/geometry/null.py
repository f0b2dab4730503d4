"""Gamma of a random walk, the null model of a training run."""

import warnings
from collections.abc import Sequence

import numpy as np
import xarray as xr

from analyzers._engine.arrays.epoch_sums import EXCESS, IMPRECISE, Codes
from analyzers._engine.arrays.geometry import (
    COVARIANCE,
    DISTANCE_LIMIT,
    FROM_DISTANCE,
)
from analyzers._engine.optimizers import (
    OPTIMIZER,
    has_other_updates,
    optimizer_classes,
)
from analyzers.geometry.time_axis import STEP_ERRORS, WINDOW_STARTS
from trajstore.format.shown import shown
from trajstore.reading.accepts_path import RunLike, accepts_path, as_run
from trajstore.reading.run import Run


@accepts_path
def random_walk_gamma(run: Run, *, stop: int | None = None) -> xr.DataArray:
    r"""Return gamma of a random walk with the step lengths of a run.

    Gamma of a walk is the cosine between -u_k and x_k - x*. The steps u_k of the walk have
    the lengths of the run's updates and independent directions, and x* is the end of the
    walk. On average any two steps are orthogonal, and

    .. math:: \gamma^0_k = \frac{|u_k|}{\sqrt{\sum_{j \ge k} |u_j|^2}},

    which is :math:`1 / \sqrt{T - k}` if all T steps have the same length. This is the mean over
    walks, up to terms of order 1/d in d dimensions; a single walk scatters around it by
    1/sqrt(d). It is positive
    because x*, the end of the walk, depends on the steps; it measures this effect alone.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.
    stop : int, optional
        Number of steps of the walk: x* is the iterate before step `stop`. Default: all
        steps of the run.

    Returns
    -------
    xarray.DataArray
        Loaded, with the dimension ``step``, the coordinates of ``run.steps`` and units of 1.
        Values follow exactly from the recorded step lengths. They are NaN at step `stop`
        and later, and where the length of this or a later step is not finite or damaged.

    Raises
    ------
    ValueError
        If `stop` is not between 1 and the number of steps.

    Notes
    -----
    The walk is a null model of plain SGD. With momentum, Adam and others record a walk through
    the optimizer, with `trajstore.evaluation.noise_gradients`.

    The formula is the limit of many dimensions. In d dimensions the cosine of a single walk
    deviates from it by about :math:`1 / \sqrt{d}` at every step. To record a walk, run
    ``traj-train run ... --control random-walk``.

    References
    ----------
    .. [1] C. Guille-Escuret, H. Naganuma, K. Fatras, I. Mitliagkas, "No Wrong Turns: The
       Simple Geometry Of Neural Networks Optimization Paths", 2023, section 6, equation
       (8), for steps of equal length. arXiv 2306.11922.
    """
    stop = run.n_steps if stop is None else stop
    if not 1 <= stop <= run.n_steps:
        raise ValueError(
            f"`stop` must be between 1 and {run.n_steps}, the number of steps of "
            f"{run.location}; got {stop}."
        )
    norms = run.steps["update_norm"].compute()
    squares = norms.values[:stop] ** 2
    left = np.cumsum(squares[::-1])[::-1]
    values = np.full(run.n_steps, np.nan)
    # A run that does not move has no direction.
    np.divide(squares, left, out=values[:stop], where=left > 0)
    long_name = "gamma of a random walk"
    gamma = norms.copy(data=np.sqrt(values)).rename("gamma")
    return gamma.assign_attrs(long_name=long_name, units="1")


def excess_gamma(
    geometry: xr.Dataset,
    run: RunLike,
    *,
    null: xr.Dataset | Sequence[xr.Dataset] | None = None,
) -> xr.Dataset:
    r"""Subtract the gamma of a random walk from the gamma of a run.

    Parameters
    ----------
    geometry : xarray.Dataset
        A result of `analyzers.path_geometry`; may be lazy. Without `null`, it is relative to
        the last iterate or to an epoch, and without the dimension ``layer``.
    run : trajstore.Run, str or os.PathLike
        The run that was measured, or the path of its store.
    null : xarray.Dataset or sequence of xarray.Dataset, optional
        The same result for a null model of the run with the same steps, such as a walk recorded
        with `trajstore.evaluation.noise_gradients`; or for several walks that differ in their
        seed, whose mean is subtracted. Default: `random_walk_gamma`.

    Returns
    -------
    xarray.Dataset
        Lazy if `geometry` is lazy, with the dimensions and coordinates of `geometry`. Average it
        with `epoch_means`, which knows the error of the mean.

        - ``gamma_null``: mean gamma of `null`, or the result of `random_walk_gamma`;
        - ``excess``: gamma minus ``gamma_null``;
        - ``excess_stderr``: its standard error, the root of the sum of two squared errors. Of
          the run, that of gamma. Of one walk, that of its gamma; of several, the standard error
          of their mean, which follows from their spread, but is at least that of their
          estimates. `random_walk_gamma` has no error;
        - ``excess_from_distance`` and ``excess_covariance``: parts of the error, as in
          `path_geometry`;
        - ``is_imprecise``: 1 where a distance has a relative error above 0.3, and 0 elsewhere;
          means leave these steps out.

    Raises
    ------
    ValueError
        If the target of `geometry` is not on the path of the run, or if `geometry` has
        layers or does not measure the gradients of steps, and `null` is not given; if
        `null` is empty, has other dimensions, or belongs to another kind of target or direction.

    Warns
    -----
    UserWarning
        If the stores say that the run and `null` have other optimizers or settings; or, without
        `null`, that the updates of the run are not parallel to gradients, as with momentum or Adam.

    Notes
    -----
    Gamma of the walk of `random_walk_gamma` uses the directions of updates, while gamma of the
    run uses the directions of gradients. Only in plain SGD are updates parallel to gradients;
    record a walk through your optimizer for others. Gamma of one recorded walk deviates from its
    expectation by about :math:`1 / \sqrt{d}` in d dimensions. The error contains that if `null`
    has several walks, as far as so few can show it: with two walks, the part of the walks is
    itself uncertain by a factor of two.

    Examples
    --------
    >>> import analyzers
    >>> geometry = analyzers.path_geometry(example_run)
    >>> excess = analyzers.excess_gamma(geometry, example_run, null=geometry)
    >>> means = analyzers.epoch_means(excess)
    >>> bool((means.excess == 0).all())  # over the run itself
    True
    """
    walks = [null] if isinstance(null, xr.Dataset) else null
    excess = subtract_null(geometry, run, null=walks)
    if walks is None:
        told = _walk_of_updates(as_run(run))
    else:
        told = _other_optimizers(geometry, walks)
    if told:
        warnings.warn(told, stacklevel=2)
    return excess


def subtract_null(
    geometry: xr.Dataset, run: RunLike, *, null: Sequence[xr.Dataset] | None = None
) -> xr.Dataset:
    """Return the result of `excess_gamma` without a warning of other optimizers."""
    own = _errors(geometry)
    if null is None:
        gamma_null, errors = _gamma_of_updates(geometry, as_run(run)), own
    else:
        walks = list(null)
        gamma_null, of_null = _mean_walk(geometry, walks)
        errors = _joined(own, of_null)
    excess = geometry["gamma"] - gamma_null
    excess.attrs = {"long_name": "gamma minus gamma of a random walk", "units": "1"}
    attributes = dict(geometry.attrs)
    if null is not None and not all(_has_epochs_of(geometry, walk) for walk in walks):
        # The covariances belong to other epochs; means use independent errors.
        attributes.pop("n_steps", None)
    if null is not None:
        # The spread of walks belongs to whole epochs.
        attributes.pop(WINDOW_STARTS, None)
        attributes.pop(STEP_ERRORS, None)
    return xr.Dataset(
        {"gamma_null": gamma_null, EXCESS: excess, **errors}, attrs=attributes
    )


def other_updates(run: Run) -> str:
    """Return the optimizers of a run whose updates are not parallel to gradients, else ""."""
    return optimizer_classes(run) if has_other_updates(run) else ""


def _walk_of_updates(run: Run) -> str:
    """Return a warning if the walk of updates is not that of the run's optimizer."""
    if not (optimizer := other_updates(run)):
        return ""
    return (
        f"{run.location} was trained with {optimizer}, whose updates are not parallel "
        "to gradients, as the steps of the walk are: the excess may be negative without any "
        "meaning. Record a walk through the same optimizer with "
        "trajstore.evaluation.noise_gradients, and give its geometry as `null`."
    )


def _other_optimizers(geometry: xr.Dataset, null: Sequence[xr.Dataset]) -> str:
    """Return a warning if walks have another optimizer than the run, where both are known."""
    own = geometry.attrs.get(OPTIMIZER)
    walked = [walk.attrs.get(OPTIMIZER) for walk in null]
    others = sorted({str(text) for text in walked if text and own and text != own})
    if not others:
        return ""
    return (
        f"The run was trained with {shown(str(own))}, but `null` with "
        f"{shown('; '.join(others))}: the excess also shows what these optimizers change. Record "
        "the walk through the optimizer of the run, with the same settings."
    )


def _errors(geometry: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return the errors of gamma under the names of those of the excess."""
    names = ("_stderr", FROM_DISTANCE, COVARIANCE)
    errors = {
        f"{EXCESS}{suffix}": geometry[f"gamma{suffix}"].drop_attrs()
        for suffix in names
        if f"gamma{suffix}" in geometry
    }
    if {"distance", "distance_stderr"} <= {*geometry.data_vars}:
        distance, stderr = geometry["distance"], geometry["distance_stderr"]
        is_imprecise = (stderr > DISTANCE_LIMIT * distance) & (distance > 0)
        errors[IMPRECISE] = is_imprecise.astype(float)
    return errors


def _joined(
    a: dict[str, xr.DataArray], b: dict[str, xr.DataArray]
) -> dict[str, xr.DataArray]:
    """Return the errors of a difference from those of its two sides, which are independent."""
    joined = {}
    for name in a.keys() & b.keys():
        other = a[name].copy(data=b[name].data)
        if name == IMPRECISE:
            joined[name] = a[name].where(a[name] > other, other)
        elif name.endswith(COVARIANCE):
            joined[name] = a[name] + other
        else:
            joined[name] = (a[name] ** 2 + other**2) ** 0.5
    return joined


def _mean_walk(
    geometry: xr.Dataset, walks: Sequence[xr.Dataset]
) -> tuple[xr.DataArray, dict[str, xr.DataArray]]:
    """Return the mean gamma of walks, (step, ...), and the errors of the mean."""
    if not walks:
        raise ValueError("`null` is empty; give the geometry of one walk or more.")
    for walk in walks:
        _check_comparable(geometry, walk)
    n = len(walks)
    # All have the same steps; epochs may be labelled differently.
    gammas = [geometry["gamma"].copy(data=walk["gamma"].data) for walk in walks]
    mean = (sum(gammas[1:], gammas[0]) / n).assign_attrs(geometry["gamma"].attrs)
    errors = _errors(walks[0])
    for walk in walks[1:]:
        errors = _joined(errors, _errors(walk))
    for name in errors:
        if name != IMPRECISE:
            errors[name] = errors[name] / (n**2 if name.endswith(COVARIANCE) else n)
    return mean, errors if n == 1 else _with_spread(gammas, errors)


def _with_spread(
    gammas: Sequence[xr.DataArray], errors: dict[str, xr.DataArray]
) -> dict[str, xr.DataArray]:
    """Enlarge errors of the mean of walks to what the spread of the walks says."""
    gamma = xr.concat(gammas, "walk")
    n = gamma.sizes["walk"]
    apart = gamma - gamma.mean("walk", skipna=False)
    squares = (apart**2).sum("walk", skipna=False) / (n * (n - 1))
    stderr = f"{EXCESS}_stderr"
    own = gammas[0].copy(data=errors[stderr].data)
    wider = squares.where(squares > own**2, own**2)
    enlarged = errors | {stderr: wider**0.5}
    covariance = f"{EXCESS}{COVARIANCE}"
    if covariance in errors and "epoch" in gamma.coords:
        # The covariances of steps with the sum over their epoch, from the same spread.
        _, codes = np.unique(gammas[0]["epoch"].values, return_inverse=True)
        products = apart.variable * _total_of_epoch(apart.variable, codes)
        spread = products.sum("walk") / (n * (n - 1))
        estimated = errors[covariance].variable
        is_wider = _total_of_epoch(spread, codes) > _total_of_epoch(estimated, codes)
        chosen = spread.where(is_wider, estimated)  # type: ignore[no-untyped-call]
        chosen = chosen.transpose(*errors[covariance].dims)
        enlarged[covariance] = errors[covariance].copy(data=chosen.data)
    return enlarged


def _total_of_epoch(values: xr.Variable, codes: Codes) -> xr.Variable:
    """Return at every step the sum over all steps with the same code; NaN is left out."""
    labelled = xr.DataArray(values, coords={"code": ("step", codes)})
    total = labelled.groupby("code").sum()
    return total.isel(code=xr.Variable("step", codes)).variable


def _has_epochs_of(geometry: xr.Dataset, walk: xr.Dataset) -> bool:
    """Return whether a walk has the same epochs as a geometry."""
    if "epoch" not in geometry.coords or "epoch" not in walk.coords:
        return False
    return np.array_equal(geometry["epoch"].values, walk["epoch"].values)


def _gamma_of_updates(geometry: xr.Dataset, run: Run) -> xr.DataArray:
    """Return gamma of the walk to the target of a geometry, (step,)."""
    direction = geometry.attrs.get("direction", "gradient")
    if direction != "gradient" or "layer" in geometry.dims:
        raise ValueError(
            "A random walk is comparable only with the result of path_geometry(run), without "
            f"layers; got gamma of {direction!r} with the dimensions {tuple(geometry.dims)}. "
            "Compare others with a recorded walk, `null`."
        )
    return random_walk_gamma(run, stop=_stop(geometry, run))


def _check_comparable(geometry: xr.Dataset, null: xr.Dataset) -> None:
    """Check that two geometries have the same dimensions, kind of target, and direction."""
    found, expected = (
        (dict(each["gamma"].sizes), *map(each.attrs.get, ("reference", "direction")))
        for each in (null, geometry)
    )
    if found != expected:
        raise ValueError(
            f"`null` has the dimensions, target and direction {found}, but the geometry has "
            f"{expected}. Record a walk with as many steps and epochs, and measure it in the "
            "same way."
        )


def _stop(geometry: xr.Dataset, run: Run) -> int:
    reference = geometry.attrs["reference"]
    if reference == "final":
        return run.n_steps
    kind, _, epoch = reference.partition(" ")
    # No steps precede the start of epoch 0.
    if kind == "epoch" and int(epoch) > 0:
        return int(np.flatnonzero(run.stored.epochs == int(epoch))[0])
    raise ValueError(
        f"The geometry is relative to {reference!r}, to which no steps of the run lead, so there "
        "is no walk to it: gamma of noise is 0 there, up to 1 / sqrt(number of parameters). Give "
        "a recorded walk as `null`, or measure relative to the end of the path, "
        "reference='final', or to the start of a later epoch."
    )
