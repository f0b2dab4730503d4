"""Compute the exact cosine of the gradients of adjacent steps, from recorded products."""

from typing import Final

import numpy as np
import xarray as xr

from analyzers._engine.arrays.probed import adjacent_cosine
from analyzers._engine.labels import describe
from analyzers._engine.tables import tables
from trajstore.format.arrays import LAYER, STEP
from trajstore.reading.accepts_path import accepts_path
from trajstore.reading.epochs import index_epochs
from trajstore.reading.run import Run

SOURCE: Final = "'On the Mysterious Optimization Geometry of Deep Neural Networks'"
"""Paper that describes zigzag geometry."""

LONG_NAMES: Final = {
    "cosine": ("cosine of adjacent gradients", "<g_k, g_(k-1)> / (|g_k| |g_(k-1)|)")
}


@accepts_path
def zigzag(run: Run, *, layers: bool = False) -> xr.Dataset:
    r"""Return the exact cosine of the gradients of adjacent steps.

    .. math:: c_k = \frac{\langle g_k, g_{k-1} \rangle}{|g_k|\, |g_{k-1}|}

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.
    layers : bool, default: False
        Compare each layer (parameter tensor) separately. The result then has the dimension
        ``layer``, and g is the gradient of the layer.

    Returns
    -------
    xarray.Dataset
        Lazy, with the dimension ``step``, the coordinates ``epoch`` and ``iteration``, and
        the dimension ``layer`` if requested. The variable ``cosine`` is float64, with units
        of 1. It is NaN in the first step, in steps where either gradient is 0 or not finite,
        and in steps whose previous gradient was not recorded, as when training was
        resumed without a saved ``recorder.state_dict()``.

    Raises
    ------
    ValueError
        If the run has fewer than two steps, or is a measurement.

    Notes
    -----
    Nothing is estimated: the recorder stores the norm of every gradient, and its inner product
    with the previous gradient, layer by layer in float32, so the error is below 1e-6.
    Gradients with norms below 1e-19 or above 1e19 have squares that float32 cannot hold.

    Under gradient descent with the learning rate :math:`\eta`, the gradient along an
    eigenvector of the Hessian with eigenvalue :math:`\lambda` follows :math:`g_{k+1} = (1 -
    \eta \lambda) g_k`. Where one eigenvector dominates, the cosine is the sign of :math:`1 -
    \eta \lambda`: -1 means that the step overshoots the bottom of the valley, that
    is, :math:`\eta \lambda > 1`. The noise of mini-batches draws the cosine towards 0 and,
    where the iterate no longer makes progress, towards :math:`-\eta \lambda / 2`; see
    `zigzag_segments`.

    Cosines of gradients further apart are not recorded, but `analyzers.lagged_gradients` and
    `analyzers.lag_curve` estimate them with standard errors. Use
    ``lagged_gradients(run.measured(name), lags=[1])`` for the gradients of a measurement:
    the store has their products with the gradient of the last optimizer step, but not with
    each other.

    References
    ----------
    .. [1] "On the Mysterious Optimization Geometry of Deep Neural Networks". Only its
       abstract was available; it reports that "gradients computed in adjacent iterations
       are extremely negatively correlated" in what it calls zigzag geometry.

    Examples
    --------
    >>> import analyzers, trajstore
    >>> run = trajstore.open_run(example_run)
    >>> cosine = analyzers.zigzag(run).cosine
    >>> bool(cosine[0].isnull()), bool((abs(cosine[1:]) <= 1).all())
    (True, True)
    """
    check_steps(run)
    products = tables(run, "grad_dot_previous", "grad_sq").astype(np.float64)
    if not layers:
        products = products.sum(LAYER, skipna=False)
    square = products["grad_sq"]
    cosine = xr.apply_ufunc(
        adjacent_cosine,
        products["grad_dot_previous"],
        square,
        square.shift({STEP: 1}),
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    attributes = {"run": run.location, "source": SOURCE}
    result = xr.Dataset({"cosine": cosine}, attrs=attributes)
    return index_epochs(describe(result, LONG_NAMES))


def check_steps(run: Run) -> None:
    """Raise ValueError for a run without adjacent gradients, and for a measurement."""
    if run.group.is_measurement:
        raise ValueError(
            f"The gradients of the measurement {run.group.name!r} of {run.location} were "
            "recorded without their products with each other; compare them by "
            "analyzers.lagged_gradients(run.measured(name), lags=[1])."
        )
    if run.n_steps < 2:
        raise ValueError(
            f"{run.location} holds {run.n_steps} steps, and adjacent gradients need two; "
            "let recorder.flush() commit more of them, or train longer."
        )
