"""Gamma of a random walk, the null model of a training run."""

import numpy as np
import xarray as xr

from trajstore.reading.accepts_path import RunLike, accepts_path, as_run
from trajstore.reading.run import Run


@accepts_path
def random_walk_gamma(run: Run, *, stop: int | None = None) -> xr.DataArray:
    r"""Return gamma of a random walk with the step lengths of a run.

    Gamma of a walk is the cosine between -u_k and x_k - x*. The steps u_k of the walk have
    the lengths of the run's updates and independent directions, and x* is the end of the
    walk. If there are many more dimensions than steps, any two steps are nearly orthogonal,
    and

    .. math:: \gamma^0_k = \frac{|u_k|}{\sqrt{\sum_{j \ge k} |u_j|^2}},

    which is :math:`1 / \sqrt{T - k}` if all T steps have the same length. It is positive
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
    return norms.copy(data=np.sqrt(values)).assign_attrs(long_name=long_name, units="1")


def excess_gamma(
    geometry: xr.Dataset, run: RunLike, *, null: xr.Dataset | None = None
) -> xr.Dataset:
    r"""Subtract the gamma of a random walk from the gamma of a run.

    Parameters
    ----------
    geometry : xarray.Dataset
        A result of `analyzers.path_geometry`; may be lazy. Without `null`, it is relative to
        the last iterate or to an epoch, and without the dimension ``layer``.
    run : trajstore.Run, str or os.PathLike
        The run that was measured, or the path of its store.
    null : xarray.Dataset, optional
        The same result for a null model of the run with the same steps, such as a walk recorded
        with `trajstore.evaluation.noise_gradients`. Default: `random_walk_gamma`.

    Returns
    -------
    xarray.Dataset
        Lazy if `geometry` is lazy. ``gamma_null`` is gamma of `null` or the result of
        `random_walk_gamma`, and ``excess`` is gamma minus ``gamma_null``. ``excess_stderr``
        is the standard error of gamma or, with `null`, the root of the sum of both squared
        errors.

    Raises
    ------
    ValueError
        If the target of `geometry` is not on the path of the run, or if `geometry` has
        layers or does not measure the gradients of steps, and `null` is not given; if
        `null` has other dimensions, or belongs to another kind of target or direction.

    Notes
    -----
    Gamma of the walk of `random_walk_gamma` uses the directions of updates, while gamma of the
    run uses the directions of gradients. Only in plain SGD are updates parallel to gradients;
    record a walk through your optimizer for others. Gamma of one recorded walk deviates from its
    expectation by about :math:`1 / \sqrt{d}` in d dimensions; that is not part of
    ``excess_stderr``, and the spread of several walks shows it.
    """
    stderr = geometry["gamma_stderr"]
    if null is None:
        gamma_null = _gamma_of_updates(geometry, as_run(run))
    else:
        _check_comparable(geometry, null)
        # Both have the same steps; epochs may be labelled differently.
        gamma_null = geometry["gamma"].copy(data=null["gamma"].data)
        stderr = np.hypot(stderr, null["gamma_stderr"].data)
    attributes = {"long_name": "gamma minus gamma of a random walk", "units": "1"}
    excess = (geometry["gamma"] - gamma_null).assign_attrs(attributes)
    return xr.Dataset(
        {"gamma_null": gamma_null, "excess": excess, "excess_stderr": stderr}
    )


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
        f"The geometry is relative to {reference!r}, to which no steps of the run lead. "
        "Use reference='final', or an epoch after epoch 0."
    )
