"""What gamma would be if steps went nowhere in particular: a random walk."""

import numpy as np
import xarray as xr

from trajstore.reading.run import Run


def random_walk_gamma(run: Run, *, stop: int | None = None) -> xr.DataArray:
    r"""Cosine between -u_k and x_k - x* of a random walk with the step lengths of a run.

    The steps u_k of the walk have the lengths of those of the run and independent
    directions, and x* is the point where it ends. In many more dimensions than there are
    steps, any two of them are orthogonal, so that

    .. math:: \gamma^0_k = \frac{|u_k|}{\sqrt{\sum_{j \ge k} |u_j|^2}},

    which is :math:`1 / \sqrt{T - k}` if all T steps are of one length. x* is not
    independent of the steps that lead to it: this is what that alone contributes.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.
    stop : int, optional
        Step before which the walk ends: x* is the iterate there. Default: after the last.

    Returns
    -------
    xarray.DataArray
        Loaded. Dimension ``step`` with the coordinates of ``run.steps``; units of 1. Exact:
        step lengths are recorded. NaN from `stop` on, and where the lengths of later steps
        are not finite or lost.

    Raises
    ------
    ValueError
        If `stop` is not between 1 and the number of steps.

    Notes
    -----
    The limit of many dimensions. The cosine of one walk of T steps in d dimensions has a
    spread of about :math:`1 / \sqrt{d}` around it, independent of k; a walk is recorded by
    ``traj-train run ... --control random-walk``.

    References
    ----------
    .. [1] C. Guille-Escuret, H. Naganuma, K. Fatras, I. Mitliagkas, "No Wrong Turns: The
       Simple Geometry Of Neural Networks Optimization Paths", 2023, section 6, equation
       (8), for steps of one length. arXiv 2306.11922.
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
    # A run that stands still has no direction.
    np.divide(squares, left, out=values[:stop], where=left > 0)
    long_name = "cosine of step and x - x* in a random walk"
    return norms.copy(data=np.sqrt(values)).assign_attrs(long_name=long_name, units="1")


def excess_gamma(geometry: xr.Dataset, run: Run) -> xr.Dataset:
    """Subtract the gamma of a random walk from that of a run.

    Parameters
    ----------
    geometry : xarray.Dataset
        As returned by `analyzers.path_geometry`, relative to the last iterate or to an
        epoch, without ``layer``; may be lazy.
    run : trajstore.Run
        The run that was measured.

    Returns
    -------
    xarray.Dataset
        Lazy if `geometry` is. ``gamma_null`` as of `random_walk_gamma`; ``excess``, gamma
        less that, and ``excess_stderr``, which is that of gamma.

    Raises
    ------
    ValueError
        If the point that `geometry` is relative to is not one of the run's path, or if it
        tells layers apart or is not of the gradients of steps.

    Notes
    -----
    The walk is one of the steps, and gamma is that of the gradients: only for plain SGD
    are these the same direction.
    """
    direction = geometry.attrs.get("direction", "gradient")
    if direction != "gradient" or "layer" in geometry.dims:
        raise ValueError(
            f"A random walk can be compared with gamma of the gradients of all steps; got "
            f"that of {direction!r} with the dimensions {tuple(geometry.dims)}."
        )
    null = random_walk_gamma(run, stop=_stop(geometry, run))
    attributes = {"long_name": "gamma less that of a random walk", "units": "1"}
    excess = (geometry["gamma"] - null).assign_attrs(attributes)
    return xr.Dataset(
        {
            "gamma_null": null,
            "excess": excess,
            "excess_stderr": geometry["gamma_stderr"],
        }
    )


def _stop(geometry: xr.Dataset, run: Run) -> int:
    reference = geometry.attrs["reference"]
    if reference == "final":
        return run.n_steps
    kind, _, epoch = reference.partition(" ")
    # The start itself is never walked to.
    if kind == "epoch" and int(epoch) > 0:
        return int(np.flatnonzero(run.stored.epochs == int(epoch))[0])
    raise ValueError(
        f"The geometry is relative to {reference!r}, to which no steps of the run lead. "
        "Take reference='final', or a later epoch."
    )
