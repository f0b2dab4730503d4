"""How sampled gradients relate to where the path goes."""

from functools import partial
from typing import Any, Final
from uuid import uuid4

import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import Delayed, delayed

from analyzers._arrays.path_geometry import QUANTITIES
from analyzers._exact import exact_sums, finish_exact
from analyzers._windows import (
    Residual,
    Totals,
    Window,
    add_totals,
    contract,
    decode,
    finish,
    fit,
    inner_products,
    residual,
)
from trajstore.epochs import index_epochs
from trajstore.reader import Run
from trajstore.reference_point import Reference, reference_point
from trajstore.schema import LAYER, STEP

PART: Final = 1 << 22
"""Elements of the parameters that a task works on: whole chunks of the store."""

STEP_BYTES: Final = 64 << 20
"""Decoded sketches that a task holds."""

RESULT_ROWS: Final = 8192
"""Steps in a chunk of the result, times layers."""

SOURCE: Final = (
    "C. Guille-Escuret, H. Naganuma, K. Fatras, I. Mitliagkas, 'No Wrong Turns: The "
    "Simple Geometry Of Neural Networks Optimization Paths', 2023, arXiv 2306.11922"
)
"""Where the quantities are from."""

DESCRIPTIONS: Final = {
    "gamma": ("cosine of gradient and x - x*", "<g, x - x*> / (|g| |x - x*|)"),
    "rsi": ("restricted secant inequality", "<g, x - x*> / |x - x*|^2"),
    "eb": ("error bound", "|g| / |x - x*|"),
    "lolr": ("locally optimal learning rate", "<g, x - x*> / |g|^2"),
    "distance": ("distance to x*", "|x - x*|"),
}
"""Long names and definitions."""

_NAMES: Final = [name for q in QUANTITIES for name in (q, f"{q}_stderr")]


def path_geometry(
    run: Run, *, reference: Reference = "final", layers: bool = False
) -> xr.Dataset:
    r"""RSI, EB and their ratio at every step, relative to a point chosen afterwards.

    With :math:`g_k` the sampled gradient of step k, :math:`x_k` the parameters it was
    taken at and :math:`x^*` the reference point,

    .. math::
        \mathrm{RSI}_k = \frac{\langle g_k, x_k - x^* \rangle}{|x_k - x^*|^2}, \quad
        \mathrm{EB}_k = \frac{|g_k|}{|x_k - x^*|}, \quad
        \gamma_k = \frac{\mathrm{RSI}_k}{\mathrm{EB}_k}, \quad
        \mathrm{loLR}_k = \frac{\mathrm{RSI}_k}{\mathrm{EB}_k^2}.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.
    reference : str, int, Run or mapping, default: "final"
        The point x*: ``"final"`` for the last iterate, another string for the snapshot
        of that name, an int for the stored reference at the start of that epoch, another
        run for its last iterate, or a mapping from parameter name to array (CPU tensors
        too; other keys are ignored).
    layers : bool, default: False
        Tell the parameter tensors apart: all variables then have the dimension
        ``layer``, and g, x and x* are those of the tensor.

    Returns
    -------
    xarray.Dataset
        Lazy. Dimension ``step`` with the coordinates ``epoch`` and ``iteration``, and
        ``layer`` if asked for. Variables, float64, units of loss and parameters taken as
        1: ``gamma``, ``rsi``, ``eb``, ``lolr`` and ``distance``, each with its standard
        error in a variable ending in ``_stderr``. NaN for steps whose gradient or
        parameters are not finite, and where a norm is 0.

    Raises
    ------
    KeyError
        If there is no such snapshot or epoch.
    ValueError
        If the run has no steps or no last iterate, or if `reference` lacks tensors.
    TypeError
        If `reference` is of another kind.

    Notes
    -----
    The numerator is exact up to the part of :math:`x^* - r` (r the stored reference of
    the step's window) beside a few recorded directions. That part is estimated from the
    1-bit sketch of the gradient: unbiased, with the variance that
    `trajstore.sketch` states, independent from step to step. The distance rests on fixed
    random probes; its error is small, but shared by neighbouring steps. Standard errors
    are to first order in both. For one tensor of `layers` the error of gamma is of the
    order of ``1.25 |w g| |v_l / w_l| / (|g_l| |x_l - x*_l| sqrt(sketch_bits))``: means
    over epochs are of use, single steps of small tensors are not. Rounding is not part of
    any standard error; it shows in tensors of fewer elements than the basis has vectors. A
    run recorded with ``exact=True`` has standard errors of 0.

    Cost: two floating-point operations per parameter and step, and 12 per sign and step.
    Memory: a few hundred MB per worker, whatever the size of the run.

    References
    ----------
    .. [1] C. Guille-Escuret, H. Naganuma, K. Fatras, I. Mitliagkas, "No Wrong Turns: The
       Simple Geometry Of Neural Networks Optimization Paths", 2023, section 3.
       arXiv 2306.11922.

    Examples
    --------
    >>> import analyzers, trajstore
    >>> run = trajstore.open_run(example_run)
    >>> geometry = analyzers.path_geometry(run)
    >>> geometry.gamma.dims
    ('step',)
    """
    if run.n_steps == 0:
        raise ValueError(
            f"{run.location} holds no steps yet; there is nothing to analyse."
        )
    target = reference_point(run, reference)
    columns = [
        array
        for c in range(run.n_windows)
        for array in _window_arrays(Window(run=run, target=target, index=c), layers)
    ]
    values = da.concatenate(columns, axis=1)  # type: ignore[no-untyped-call]
    # Zarr takes chunks of one size only, and windows are of many.
    n_layers = len(run.layout.names) if layers else 1
    values = values.rechunk({1: max(1, RESULT_ROWS // n_layers)})
    dims = (STEP, LAYER) if layers else (STEP,)
    coordinates: dict[str, Any] = {
        STEP: np.arange(run.n_steps),
        "epoch": (STEP, run.epochs),
        "iteration": (STEP, run.iterations),
    }
    if layers:
        # Fixed-width strings have no place in Zarr's specification; these have.
        coordinates[LAYER] = np.array(run.layout.names, object)
    variables = {
        name: (dims, values[i], _attributes(name)) for i, name in enumerate(_NAMES)
    }
    attributes = {
        "run": run.location,
        "reference": target.label,
        "reference_note": target.note,
        "status": run.status,
        "source": SOURCE,
    }
    return index_epochs(xr.Dataset(variables, coordinates, attributes))


def _attributes(name: str) -> dict[str, str]:
    quantity = name.removesuffix("_stderr")
    long_name, definition = DESCRIPTIONS[quantity]
    if name != quantity:
        long_name, definition = f"standard error of {quantity}", "first order"
    return {"long_name": long_name, "definition": definition, "units": "1"}


def _window_arrays(window: Window, layers: bool) -> list[da.Array]:
    """Make the tasks of one window; one array for each chunk of its steps."""
    run = window.run
    bounds = run.windows[["start", "stop"]].isel(window=window.index)
    part = min(PART, run.layout.size)
    row_bytes = 4 * (part if run.spec.exact else run.spec.sketch_bits)
    chunks = _slices(
        int(bounds["start"]), int(bounds["stop"]), max(1, STEP_BYTES // row_bytes)
    )
    tasks = _exact_tasks if run.spec.exact else _sketch_tasks
    inner = (len(run.layout.names),) if layers else ()
    return [
        da.from_delayed(  # type: ignore[no-untyped-call]
            _task(_stack, result),
            shape=(len(_NAMES), steps.stop - steps.start, *inner),
            dtype=np.float64,
        )
        for steps, result in zip(chunks, tasks(window, chunks, layers), strict=True)
    ]


def _sketch_tasks(window: Window, chunks: list[slice], layers: bool) -> list[Delayed]:
    run = window.run
    fold = run.sketch.fold
    parts = [
        _task(partial(inner_products, window, elements))
        for elements in _slices(0, run.layout.size, PART)
    ]
    fitted = _task(partial(fit, window), parts)
    rows = _slices(0, fold.n_rows, max(1, PART // fold.width))
    left = [_task(partial(residual, window, r, layers=layers), fitted) for r in rows]
    totals = _task(add_totals, [_task(_totals, piece) for piece in left])
    decoded = [_task(partial(decode, window, steps)) for steps in chunks]
    products = [
        [
            _task(partial(contract, window, r, layers=layers), sketches, piece)
            for r, piece in zip(rows, left, strict=True)
        ]
        for sketches in decoded
    ]
    return [
        _task(
            partial(finish, window, steps, layers=layers),
            fitted,
            totals,
            of_steps,
        )
        for steps, of_steps in zip(chunks, products, strict=True)
    ]


def _exact_tasks(window: Window, chunks: list[slice], layers: bool) -> list[Delayed]:
    elements = _slices(0, window.run.layout.size, PART)
    return [
        _task(
            partial(finish_exact, layers=layers),
            [_task(partial(exact_sums, window, steps, part)) for part in elements],
        )
        for steps in chunks
    ]


def _task(function: Any, *arguments: Any) -> Delayed:
    """Delay a call; Dask's dashboard shows it by the name of the function."""
    plain = function.func if isinstance(function, partial) else function
    name = f"{plain.__name__.strip('_')}-{uuid4().hex}"
    task: Delayed = delayed(function, traverse=False)(*arguments, dask_key_name=name)
    return task


def _totals(left: Residual) -> Totals:
    return left.totals


def _stack(quantities: dict[str, Any]) -> Any:
    return np.stack([quantities[name] for name in _NAMES])


def _slices(start: int, stop: int, step: int) -> list[slice]:
    return [slice(i, min(i + step, stop)) for i in range(start, stop, step)]
