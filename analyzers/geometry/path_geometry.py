"""Compute RSI, EB and gamma of gradients, relative to a target chosen after training."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any, Final, NamedTuple

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import Delayed

from analyzers._engine.arrays.geometry import (
    COVARIANCE,
    FROM_DISTANCE,
    ROUNDING_FLOOR,
    USES_SUM,
)
from analyzers._engine.labels import describe, layer_names, step_coordinates
from analyzers._engine.on_path import on_path
from analyzers._engine.optimizers import OPTIMIZER, optimizer_text
from analyzers._engine.rules import has_rule
from analyzers._engine.slices import slices
from analyzers._engine.tables import check_basis
from analyzers._engine.tasks import NAMES, geometry_tasks
from analyzers.geometry.nonfinite_target import nonfinite_target
from analyzers.geometry.time_axis import (
    INDEPENDENT,
    ROUNDING_ERROR,
    STEP_ERRORS,
    WINDOW_STARTS,
    has_one_epoch,
)
from analyzers.geometry.vector_file import write_vector_file
from trajstore.format.arrays import LAYER, STEP
from trajstore.format.shown import shown
from trajstore.reading.accepts_path import accepts_path
from trajstore.reading.epochs import index_epochs
from trajstore.reading.run import Run
from trajstore.reading.target import Target, TargetLike, find_target

RESULT_ROWS: Final = (4096, 16384)
"""Smallest and largest number of steps in a chunk of the result; runs of 16384 steps or
more have at least four chunks. Small chunks repeat work, because each chunk first decodes
again the anchors since the last keyframe before it."""

RESULT_VALUES: Final = 1 << 20
"""Largest number of steps times layers in a chunk of the result."""

ESTIMATOR: Final = 6
"""Version of the estimator, incremented when results change."""

SOURCE: Final = (
    "C. Guille-Escuret, H. Naganuma, K. Fatras, I. Mitliagkas, 'No Wrong Turns: The "
    "Simple Geometry Of Neural Networks Optimization Paths', 2023, arXiv 2306.11922"
)
"""Paper that defines the quantities."""

DESCRIPTIONS: Final = {
    "gamma": ("cosine of gradient and x - x*", "<g, x - x*> / (|g| |x - x*|)"),
    "rsi": ("restricted secant inequality", "<g, x - x*> / |x - x*|^2"),
    "eb": ("error bound", "|g| / |x - x*|"),
    "lolr": ("locally optimal learning rate", "<g, x - x*> / |g|^2"),
    "distance": ("distance to x*", "|x - x*|"),
}
"""Long names and definitions of the quantities."""

ERROR_NAMES: Final = {
    FROM_DISTANCE: "error of {} if the distance is one standard error too long",
    COVARIANCE: "covariance of the error of {} with the sum of the errors in the window's "
    "part of the epoch",
}
"""Long names of the variables that describe errors, by suffix."""


LABELS: Final = (
    DESCRIPTIONS
    | {
        f"{quantity}{suffix}": long_name.format(quantity)
        for quantity in DESCRIPTIONS
        for suffix, long_name in ERROR_NAMES.items()
    }
    | {USES_SUM: "1 where the displacement of the window sharpens the estimates"}
)


class GeometryPlan(NamedTuple):
    """A geometry that is ready to be computed, as a whole or chunk by chunk."""

    dataset: xr.Dataset  # the lazy result of `path_geometry`
    chunks: list[slice]  # steps of each chunk
    tasks: list[Delayed]  # one task per chunk, float64 (quantity, step[, layer])
    # Computes the result of a range of steps in the calling thread.
    compute_steps: Callable[[slice], npt.NDArray[np.float64]]


@accepts_path
def path_geometry(
    run: Run,
    *,
    reference: TargetLike = "final",
    layers: bool = False,
    weight_decay: float = 0.0,
) -> xr.Dataset:
    r"""Return RSI, EB and their ratio at every step, relative to a target chosen after training.

    With :math:`g_k` the sampled gradient of step k, :math:`x_k` the parameters it was
    taken at and :math:`x^*` the target,

    .. math::
        \mathrm{RSI}_k = \frac{\langle g_k, x_k - x^* \rangle}{|x_k - x^*|^2}, \quad
        \mathrm{EB}_k = \frac{|g_k|}{|x_k - x^*|}, \quad
        \gamma_k = \frac{\mathrm{RSI}_k}{\mathrm{EB}_k}, \quad
        \mathrm{loLR}_k = \frac{\mathrm{RSI}_k}{\mathrm{EB}_k^2}.

    Parameters
    ----------
    run : trajstore.Run or str
        As returned by `trajstore.open_run`, or the path of the store; or as returned by `trajstore.Run.measured`, to measure
        the gradients of a measurement, or updates, instead of the gradients of steps.
    reference : str, int, Run or mapping, default: "final"
        The target x*: ``"final"`` for the last iterate, ``"step:4500"`` for the stored anchor
        of the window that starts at that step, another string for the snapshot of that name,
        an int for the stored anchor at the start of that epoch, another
        run or the path of its store for its last iterate, or a mapping from parameter names to
        arrays or CPU tensors, in which other keys are ignored, or the path of a ``.npz``, ``.pt``
        or ``.pth`` file with such a mapping. Arrays and other runs are
        recognised if they are an iterate of this run: ``attrs["reference_note"]`` names its step.
    layers : bool, default: False
        Measure each layer (parameter tensor) separately. All variables then have the
        dimension ``layer``, and g, x and x* consist of the elements of the layer.
    weight_decay : float, default: 0.0
        Measure ``g + weight_decay * x`` instead of g, with the same factor for all
        parameters. Use this for an optimizer that adds its weight decay to the gradient, such
        as SGD or Adam; not for AdamW and others whose decay is decoupled from the gradient.
        The run must have been recorded with a basis, or exactly.

    Returns
    -------
    xarray.Dataset
        Lazy, with the dimension ``step``, the coordinates ``epoch`` and ``iteration``, and
        the dimension ``layer`` if requested. The variables ``gamma``, ``rsi``, ``eb``,
        ``lolr`` and ``distance`` are float64, each with its standard error in a variable
        ending in ``_stderr``. All units are 1: loss and parameters count as dimensionless.
        Two more variables for each quantity serve means and derived quantities: its error if
        the distance is one standard error too long, ending in ``_from_distance``, and the
        covariance of its error with the sum of the errors in the same window and epoch,
        ending in ``_covariance``. ``uses_window_sum`` is 1 where the known displacement of
        the window has sharpened the estimates, and 0 elsewhere.
        Values are NaN where the gradient or the parameters are not finite, and where a norm
        is 0. Gamma, RSI and EB are NaN in a step of the run that starts at the target, where
        x - x* is only the rounding of the anchor.

    Raises
    ------
    KeyError
        If the run has no such snapshot or epoch, or if no window starts at the step.
    ValueError
        If the run has no steps or no last iterate; if `reference` lacks layers; or if
        `weight_decay` is not 0 and the run was recorded with ``basis=0`` and not exactly.
    TypeError
        If `reference` has an unsupported type.

    Warns
    -----
    UserWarning
        If `weight_decay` is not 0 and the run was trained with decoupled weight decay; if the
        target is not finite, so that all values are NaN.

    Notes
    -----
    The numerator of RSI is exact except for the product of the gradient with the residual.
    With r the anchor of the step's window, the residual is the part of :math:`x^* - r` that
    a few recorded directions, the basis, do not explain. A run recorded with ``basis=0`` has
    no such directions. The product with the residual is estimated from the sketch of
    the gradient. The estimate is unbiased, its errors are independent between steps, and
    `trajstore.sketch.sketch` states its variance. The distance is computed from fixed random
    probes; its error is small, but shared by neighbouring steps. Standard errors are first
    order in the errors of the product and of the distance.

    If `torch.optim.SGD` trained the run, with or without momentum, dampening, Nesterov's
    method, weight decay and ``maximize``, the gradients of a window add up to its known
    displacement. The products of all gradients in the window are corrected accordingly, and
    their running sum improves the distance. Errors of steps of a window then depend on each
    other: their mean is more precise than independent errors would make it. This is not done
    where recorded products of the updates show that the rule does not hold, for example
    because a step was skipped, gradients were changed after they were recorded, or parameters
    were changed by hand; nor in windows with lost steps, nor for a run with ``basis=0``.

    If another optimizer trained the run, the sum of every window's gradients is recorded, in a
    sketch of its own. The products of all gradients in the window are corrected by it, which
    makes means over the window more precise, also of single layers, and changes single steps
    little.

    With w the weights of the sketch and v the residual, the error of gamma for a single
    layer l is about ``1.25 |w g| |v_l / w_l| / (|g_l| |x_l - x*_l| sqrt(sketch_bits))``;
    below `sketch_bits` parameters it is smaller, and falls with every bit of a number.
    Here ``|w g|`` covers all layers, so single steps of small layers are not useful, but
    means over epochs are. Standard errors contain a floor for rounding (2^-23 of the value; 2^-26 in recordings with
    ``float64=True``), which may be too small in layers with fewer elements than the basis has
    vectors. A run recorded with ``exact=True`` has
    standard errors of 0.

    For each step, the analysis costs two floating-point operations per parameter, and 12
    per sign of the sketch. A worker needs a few hundred MB of memory, however large the run.

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
    return plan_geometry(
        run, reference, layers=layers, weight_decay=weight_decay
    ).dataset


def plan_geometry(
    run: Run, reference: TargetLike, *, layers: bool, weight_decay: float
) -> GeometryPlan:
    """Build the graph of `path_geometry`, and label its result."""
    target = analysis_target(run, reference)
    if weight_decay:
        _check_weight_decay(run)
    chunks = result_chunks(run)
    tasks = geometry_tasks(
        run, target, chunks, layers=layers, weight_decay=weight_decay
    )
    inner = (len(run.layout.names),) if layers else ()
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
    coordinates = step_coordinates(run)
    if layers:
        coordinates[LAYER] = layer_names(run)
    direction = direction_name(run, weight_decay)
    attributes = {
        "run": run.location,
        "reference": target.label,
        "reference_note": target.note,
        "status": run.status,
        "n_steps": run.n_steps,
        **_epochs(run, target),
        **_errors_of_steps(run),
        **_optimizer(run),
        "window_sums": _window_sums(run),
        "direction": direction,
        "computed_from": computed_from(run, target, direction, layers=layers),
        "source": SOURCE,
    }
    variables = {name: (dims, values[i]) for i, name in enumerate(NAMES)}
    dataset = describe(xr.Dataset(variables, coordinates, attributes), LABELS)
    compute = partial(
        compute_steps, run, target, layers=layers, weight_decay=weight_decay
    )
    return GeometryPlan(index_epochs(dataset), chunks, tasks, compute)


def _epochs(run: Run, target: Target) -> dict[str, int]:
    """Return the steps of an epoch, and the epoch that holds the target, where they are known."""
    found, epochs = {}, run.stored.epochs
    _, counts = np.unique(epochs, return_counts=True)
    if len(counts) > 1 and (counts[:-1] == counts[0]).all() and counts[-1] <= counts[0]:
        found["epoch_steps"] = int(counts[0])
    of, step = target.at or (None, 0)
    steps = run.stored.step_rows
    if of is not None and of.location == run.location and 0 < step < steps.n_rows:
        # Steps after a target inside the run lead away from it.
        found |= {"reference_step": step, "reference_epoch": int(steps.epochs[step])}
    return found


def _optimizer(run: Run) -> dict[str, str]:
    """Return the name of the optimizer and its settings, if they are known."""
    text = optimizer_text(run)
    return {OPTIMIZER: text} if text else {}


def _errors_of_steps(run: Run) -> dict[str, Any]:
    """Say how errors of steps are related, for means over parts of the only epoch."""
    if run.group.is_measurement:
        return {}
    found: dict[str, Any] = {}
    if has_one_epoch(run.stored.epochs):
        starts = run.windows.variables["start"].values
        found[WINDOW_STARTS] = [int(start) for start in np.unique(starts)]
    is_tiny = run.spec.is_packed and run.layout.sizes.sum() <= run.spec.probes
    if run.spec.exact or (is_tiny and not has_rule(run)):
        # Every parameter has a probe of its own, so that only rounding is left.
        found[STEP_ERRORS] = INDEPENDENT
    if not run.spec.exact:
        found[ROUNDING_ERROR] = ROUNDING_FLOOR[run.spec.float64]
    return found


def _check_weight_decay(run: Run) -> None:
    """Check that the product with x is known; warn if the optimizer decoupled its decay."""
    if not run.spec.exact:
        check_basis(run, "Weight decay in the gradient")
    decoupled = {
        group.optimizer.rpartition(".")[2]
        for group in run.stored.document.optimizer
        for _, settings in group.settings
        if settings.get("decoupled_weight_decay") and settings.get("weight_decay")
    }
    if decoupled:
        warnings.warn(
            f"{run.location} was trained by {shown(', '.join(sorted(decoupled)))}, which "
            "shrinks the parameters itself and adds no weight decay to the gradient: "
            "g + weight_decay * x is not a direction of this optimizer. Leave weight_decay out "
            "to measure the gradient, or record with updates=True to measure whole updates.",
            stacklevel=5,
        )


def compute_steps(
    run: Run, target: Target, steps: slice, *, layers: bool, weight_decay: float
) -> npt.NDArray[np.float64]:
    """Compute the geometry of a range of steps, float64 (quantity, step[, layer])."""
    [task] = geometry_tasks(
        run, target, [steps], layers=layers, weight_decay=weight_decay
    )
    values: npt.NDArray[np.float64] = task.compute(  # type: ignore[no-untyped-call]
        scheduler="synchronous"
    )
    return values


def _window_sums(run: Run) -> str:
    """Say whether the known displacements of windows can sharpen the estimates."""
    if has_rule(run):
        return "used where the updates are those of SGD, as `uses_window_sum` says"
    if run.group.is_measurement:
        return "not used: the updates are not made of the gradients of a measurement"
    if run.spec.exact:
        return "not needed: the run was recorded exactly"
    recorded = {
        "gradients": run.spec.window_folds > 0,
        "displacements": run.spec.displacement_sum,
    }
    if names := [name for name, is_stored in recorded.items() if is_stored]:
        sums = " and ".join(names)
        return f"the recorded sums of {sums} are used where a window has them"
    return "not used: the store does not say that SGD trained the run, or has no basis"


def analysis_target(run: Run, reference: TargetLike) -> Target:
    """Find the target of a run; write given arrays to a file, to keep them out of graphs."""
    if run.n_steps == 0:
        raise ValueError(
            f"{run.location} holds no steps yet; there is nothing to analyse."
        )
    target = find_target(run, reference)
    if problem := nonfinite_target(run, target):
        warnings.warn(problem, stacklevel=5)
        target = replace(target, is_reported=True)
    else:
        target = on_path(run, target)
    if target.values is None:
        return target
    return replace(target, read=write_vector_file(target.values), values=None)


def direction_name(run: Run, weight_decay: float) -> str:
    """Return the name of the measured direction, ``gradient`` by default."""
    name = run.group.name if run.group.is_measurement else "gradient"
    return f"{name} + {weight_decay:g} x" if weight_decay else name


def computed_from(run: Run, target: Target, direction: str, *, layers: bool) -> str:
    """Return a JSON text that identifies everything a result depends on."""
    return json.dumps(
        {
            "created": run.stored.document.created,
            "n_steps": run.n_steps,
            "n_resumes": len(run.stored.document.resumes),
            "status": run.status,
            "reference": target.identity,
            "layers": layers,
            "direction": direction,
            "version": f"{version('trajstore')}, {ESTIMATOR}",
        }
    )


def result_chunks(run: Run) -> list[slice]:
    """Cut the steps of a run into the chunks of its results."""
    fewest, most = RESULT_ROWS
    most = min(most, RESULT_VALUES // len(run.layout.names))
    rows = max(1, min(max(fewest, run.n_steps // 4), most))
    return slices(slice(0, run.n_steps), 1 << (rows.bit_length() - 1))
