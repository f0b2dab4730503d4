"""How sampled gradients relate to where the path goes."""

import json
from dataclasses import replace
from importlib.metadata import version
from typing import Any, Final

import dask.array as da
import numpy as np
import xarray as xr

from analyzers._engine.sweep import slices
from analyzers._engine.tables import check_basis
from analyzers._engine.tasks import NAMES, geometry_tasks
from analyzers._engine.vector_file import write_vector_file
from trajstore.format.arrays import LAYER, STEP
from trajstore.reading.epochs import index_epochs
from trajstore.reading.run import Run
from trajstore.reading.target import Target, TargetLike, find_target

RESULT_ROWS: Final = (4096, 16384)
"""Fewest and most steps in a chunk of the result; there are four chunks, or more. The
references between the last keyframe and a chunk have to be decoded for it."""

RESULT_VALUES: Final = 1 << 20
"""Values of a quantity by layer in a chunk of the result, at most."""

ESTIMATOR: Final = 2
"""Counted up where results change from one version of this package to the next."""

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


def path_geometry(
    run: Run,
    *,
    reference: TargetLike = "final",
    layers: bool = False,
    weight_decay: float = 0.0,
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
        As returned by `trajstore.open_run`, or by `trajstore.Run.measured` for other
        gradients, or for what steps change in the place of the gradient.
    reference : str, int, Run or mapping, default: "final"
        The point x*: ``"final"`` for the last iterate, another string for the snapshot
        of that name, an int for the stored reference at the start of that epoch, another
        run for its last iterate, or a mapping from parameter name to array (CPU tensors
        too; other keys are ignored).
    layers : bool, default: False
        Tell the parameter tensors apart: all variables then have the dimension
        ``layer``, and g, x and x* are those of the tensor.
    weight_decay : float, default: 0.0
        Measure ``g + weight_decay * x`` in the place of g, for all parameters alike: what
        an optimizer descends along that adds its weight decay to the gradient. Needs a run
        that was recorded with a basis, or exactly.

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
        If the run has no steps or no last iterate, or if `reference` lacks tensors; or if
        there is weight decay and the run, not an exact one, was recorded with ``basis=0``.
    TypeError
        If `reference` is of another kind.

    Notes
    -----
    The numerator is exact up to the part of :math:`x^* - r` (r the stored reference of
    the step's window) beside a few recorded directions, of which a run has none that was
    recorded with ``basis=0``. That part is estimated from the 1-bit sketch of the gradient:
    unbiased, with the variance that `trajstore.sketch.sketch` states, independent from step to
    step. The distance rests on fixed random probes; its error is small, but shared by neighbouring steps. Standard errors
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
    target = analysis_target(run, reference)
    return lazy_geometry(run, target, layers=layers, weight_decay=weight_decay)


def analysis_target(run: Run, reference: TargetLike) -> Target:
    """Find a reference point for a run; arrays go to a file, never with the tasks."""
    if run.n_steps == 0:
        raise ValueError(
            f"{run.location} holds no steps yet; there is nothing to analyse."
        )
    target = find_target(run, reference)
    if target.values is None:
        return target
    return replace(target, read=write_vector_file(target.values), values=None)


def lazy_geometry(
    run: Run, target: Target, *, layers: bool, weight_decay: float
) -> xr.Dataset:
    """See `path_geometry`."""
    if weight_decay and not run.spec.exact:
        check_basis(run, "Weight decay in the gradient")
    chunks = result_chunks(run)
    inner = (len(run.layout.names),) if layers else ()
    tasks = geometry_tasks(
        run, target, chunks, layers=layers, weight_decay=weight_decay
    )
    arrays = [
        da.from_delayed(  # type: ignore[no-untyped-call]
            task,
            shape=(len(NAMES), steps.stop - steps.start, *inner),
            dtype=np.float64,
        )
        for steps, task in zip(chunks, tasks, strict=True)
    ]
    values = da.concatenate(arrays, axis=1)  # type: ignore[no-untyped-call]
    dims = (STEP, LAYER) if layers else (STEP,)
    coordinates: dict[str, Any] = {
        STEP: run.stored.step_numbers,
        "epoch": (STEP, run.stored.epochs),
        "iteration": (STEP, run.stored.iterations),
    }
    if layers:
        # Fixed-width strings have no place in Zarr's specification; these have.
        coordinates[LAYER] = np.array(run.layout.names, object)
    variables = {
        name: (dims, values[i], _attributes(name)) for i, name in enumerate(NAMES)
    }
    attributes = {
        "run": run.location,
        "reference": target.label,
        "reference_note": target.note,
        "status": run.status,
        "direction": _direction(run, weight_decay),
        "computed_from": computed_from(
            run, target, layers=layers, weight_decay=weight_decay
        ),
        "source": SOURCE,
    }
    return index_epochs(xr.Dataset(variables, coordinates, attributes))


def _direction(run: Run, weight_decay: float) -> str:
    """Name what was measured in the place of g."""
    name = run.group.name if run.group.is_measurement else "gradient"
    return f"{name} + {weight_decay:g} x" if weight_decay else name


def computed_from(
    run: Run, target: Target, *, layers: bool, weight_decay: float
) -> str:
    """Say what a result rests on, as JSON: equal for results that would be equal."""
    return json.dumps(
        {
            "created": run.stored.document.created,
            "n_steps": run.n_steps,
            "n_resumes": len(run.stored.document.resumes),
            "status": run.status,
            "reference": target.identity,
            "layers": layers,
            "direction": _direction(run, weight_decay),
            "version": f"{version('trajstore')}, {ESTIMATOR}",
        }
    )


def result_chunks(run: Run) -> list[slice]:
    """Cut the steps of a run into the chunks that results have."""
    fewest, most = RESULT_ROWS
    most = min(most, RESULT_VALUES // len(run.layout.names))
    rows = max(1, min(max(fewest, run.n_steps // 4), most))
    return slices(slice(0, run.n_steps), 1 << (rows.bit_length() - 1))


def _attributes(name: str) -> dict[str, str]:
    quantity = name.removesuffix("_stderr")
    long_name, definition = DESCRIPTIONS[quantity]
    if name != quantity:
        long_name, definition = f"standard error of {quantity}", "first order"
    return {"long_name": long_name, "definition": definition, "units": "1"}
