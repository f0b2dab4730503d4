"""Whether the gradients of adjacent steps point against each other."""

from typing import Final

import numpy as np
import xarray as xr

from analyzers._engine.arrays.probed import adjacent_cosine
from trajstore.format.arrays import LAYER, STEP
from trajstore.reading.epochs import index_epochs
from trajstore.reading.run import Run

CHUNK: Final = 1 << 14
"""Steps in a chunk of the result."""

SOURCE: Final = "'On the Mysterious Optimization Geometry of Deep Neural Networks'"
"""Where zigzag geometry is described."""


def zigzag(run: Run, *, layers: bool = False) -> xr.Dataset:
    r"""Cosine of the gradients of adjacent steps, exact.

    .. math:: c_k = \frac{\langle g_k, g_{k-1} \rangle}{|g_k|\, |g_{k-1}|}

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.
    layers : bool, default: False
        Tell the parameter tensors apart: the result then has the dimension ``layer``,
        and g is the gradient of the tensor.

    Returns
    -------
    xarray.Dataset
        Lazy. Dimension ``step`` with the coordinates ``epoch`` and ``iteration``, and
        ``layer`` if asked for. ``cosine``, float64, units of 1. NaN for the first step;
        where a gradient is 0 or not finite; and where the gradient before was not
        recorded, as after an interruption without ``recorder.state_dict()``.

    Raises
    ------
    ValueError
        If the run has fewer than two steps, or is a measurement.

    Notes
    -----
    Nothing is estimated: training records the inner product of every gradient with the one
    before, and its norm, tensor by tensor in float32, so that the error is below 1e-6.
    Gradients of norms below 1e-19, or above 1e19, have squares that float32 does not hold.

    Under gradient descent with the learning rate :math:`\eta`, the gradient along an
    eigenvector of the Hessian of eigenvalue :math:`\lambda` follows :math:`g_{k+1} = (1 -
    \eta \lambda) g_k`: where one such mode dominates, the cosine is the sign of :math:`1 -
    \eta \lambda`, and -1 means that the step is more than once as long as it takes to the
    bottom of the valley, :math:`\eta \lambda > 1`. Noise of mini-batches draws it towards 0
    and, where the iterate no longer gets anywhere, to :math:`-\eta \lambda / 2`; see
    `zigzag_segments`.

    The cosine of gradients further apart is not recorded, but estimated:
    `analyzers.lagged_gradients` and `analyzers.lag_curve` give it with its standard error.
    Those of a measurement are compared by ``lagged_gradients(run.measured(name),
    lags=[1])``: its rows are recorded with their product with the gradient of the last
    optimizer step, and not with each other.

    References
    ----------
    .. [1] "On the Mysterious Optimization Geometry of Deep Neural Networks", of which the
       abstract was available: it reports that "gradients computed in adjacent iterations
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
    # The window means nothing here.
    tables = run.steps[["grad_dot_previous", "grad_sq"]].drop_vars("window")
    tables = tables.chunk({STEP: CHUNK}).astype(np.float64)
    if not layers:
        tables = tables.sum(LAYER, skipna=False)
    square = tables["grad_sq"]
    cosine = xr.apply_ufunc(
        adjacent_cosine,
        tables["grad_dot_previous"],
        square,
        square.shift({STEP: 1}),
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    attributes = {
        "long_name": "cosine of adjacent gradients",
        "definition": "<g_k, g_(k-1)> / (|g_k| |g_(k-1)|)",
        "units": "1",
    }
    result = xr.Dataset({"cosine": cosine.assign_attrs(attributes)})
    if layers:
        result = result.assign_coords({LAYER: np.array(run.layout.names, object)})
    else:
        result = result.drop_vars(LAYER, errors="ignore")
    return index_epochs(result).assign_attrs(run=run.location, source=SOURCE)


def check_steps(run: Run) -> None:
    """Refuse runs that have no adjacent gradients.

    Parameters
    ----------
    run : Run
        The recorded run.

    Raises
    ------
    ValueError
        If it has fewer than two steps, or is a measurement.
    """
    if run.group.is_measurement:
        raise ValueError(
            f"The rows of the measurement {run.group.name!r} of {run.location} were recorded "
            "without products with each other; compare them by "
            "analyzers.lagged_gradients(run.measured(name), lags=[1])."
        )
    if run.n_steps < 2:
        raise ValueError(
            f"{run.location} holds {run.n_steps} steps, and adjacent gradients need two; "
            "let recorder.flush() commit more of them, or train longer."
        )
