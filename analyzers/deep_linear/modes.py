"""Singular modes of a recorded deep linear network, compared with their closed form."""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers._engine.labels import describe, step_coordinates
from analyzers._engine.slices import slices
from analyzers.deep_linear.arrays import (
    effective_rank,
    half_time,
    imbalance,
    mode_strength,
    time_of_steps,
)
from analyzers.deep_linear.conventions import LossConvention
from trajstore.format.arrays import STEP
from trajstore.reading.accepts_path import accepts_path
from trajstore.reading.epochs import index_epochs
from trajstore.reading.run import Run

FloatArray = npt.NDArray[np.floating[Any]]

READ_BYTES: Final = 32 << 20
"""Number of bytes of iterates to read at a time."""

STRENGTH_RTOL: Final = 1e-6
"""Strength, relative to the largest strength, below which a mode counts as absent."""

SOURCE: Final = (
    "A. M. Saxe, J. L. McClelland, S. Ganguli, 'Exact solutions to the nonlinear dynamics "
    "of learning in deep linear neural networks', 2014, arXiv 1312.6120"
)

LONG_NAMES: Final = {
    "modes": ("singular mode of the product of weights", "u^T W_L ... W_1 v"),
    "closed_form": (
        "singular mode under gradient flow",
        "da/dt = L a^(2 - 2/L) (strength - a)",
    ),
    "error": ("mode less closed form", "modes - closed_form"),
    "half_time": (
        "time at which a mode reaches half of its strength",
        "interpolated between steps",
    ),
    "half_time_closed_form": (
        "time to half of the strength under gradient flow",
        "integral of dt = da / (L a^(2 - 2/L) (strength - a))",
    ),
    "between_modes": (
        "largest entry, other than the modes, of the product of weights",
        "largest |u_i^T W_L ... W_1 v_j|",
    ),
    "effective_rank": (
        "effective rank of the product of weights",
        "exp(entropy of its singular values)",
    ),
    "imbalance": (
        "imbalance of the layers",
        "largest entry of |W_(l+1)^T W_(l+1) - W_l W_l^T|",
    ),
    "drift": (
        "change of the matrices that gradient flow conserves",
        "largest entry of the change since the first step",
    ),
}
"""Long names and definitions of the variables of the result."""

DIMS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("modes", "closed_form", "error"), (STEP, "mode")),
    **dict.fromkeys(("half_time", "half_time_closed_form"), ("mode",)),
    **dict.fromkeys(("between_modes", "effective_rank", "imbalance", "drift"), (STEP,)),
}


@accepts_path
def linear_modes(
    run: Run,
    *,
    correlation: npt.ArrayLike | None = None,
    layers: Sequence[str] | None = None,
    loss: LossConvention | None = None,
    start: int = 0,
) -> xr.Dataset:
    r"""Singular modes of the product of recorded weights, and their closed form.

    Let :math:`\Sigma_{yx} = U \mathrm{diag}(\lambda) V^T` be the correlation of targets and
    whitened inputs, and :math:`W = W_L \cdots W_1` the product of the weights. The modes
    are :math:`a_\mu = u_\mu^T W v_\mu`; the closed form describes them under gradient
    flow [1]_ [2]_. The modes are computed from the iterates, which an exact recording holds
    in full. Training need not log anything, the correlation can be chosen afterwards, and
    the weights need only have shapes that can be multiplied.

    Parameters
    ----------
    run : trajstore.Run
        Run that was recorded with ``exact=True``.
    correlation : array_like, optional
        Correlation :math:`\Sigma_{yx}`, shape ``(n_out, n_in)``. Default:
        ``run.attrs["input_output_correlation"]``, which the workloads ``deep-linear-*``
        store.
    layers : sequence of str, optional
        Names of the weight matrices, from inputs to outputs. Default: all parameters.
    loss : {"half-sum", "sum", "mean"}, optional
        Convention of the training loss, as `time_of_steps` takes it. Default:
        ``run.attrs["loss_convention"]``, or ``"half-sum"`` if the run has no such attribute.
    start : int, default: 0
        Step whose modes are the initial values of the closed form. Randomly initialised
        weights align with the modes only after a number of steps, so choose a later start.

    Returns
    -------
    xarray.Dataset
        Loaded. Dimension ``step`` with the coordinates ``epoch``, ``iteration`` and
        ``time``, the time of the gradient flow; and dimension ``mode``, in order of
        decreasing strength, with the coordinate ``strength``, :math:`\lambda`. Variables
        are float64, without units:

        - ``modes``, ``closed_form``, and their difference ``error`` (step, mode). Closed
          forms are NaN before `start` and for modes that are not positive at `start`.
        - ``half_time``, the time at which a mode first reaches half of its strength, and
          ``half_time_closed_form`` (mode). NaN if half is not reached.
        - ``between_modes`` (step), the largest entry, other than the modes, of W in the
          bases U and V; and ``effective_rank`` (step) of W.
        - ``imbalance`` (step), the largest entry of :math:`W_{l+1}^T W_{l+1} - W_l W_l^T`;
          and ``drift`` (step), the largest change of such an entry since the first step.

        Values at steps in a damaged chunk are NaN.

    Raises
    ------
    ValueError
        If the run was not recorded with ``exact=True`` or has no step `start`; if weights
        are not matrices or their shapes do not match; if the correlation has the wrong
        shape; or if `loss` is unknown.
    KeyError
        If there is no correlation, or if a layer does not exist.

    Notes
    -----
    Nothing is estimated; the only errors are the rounding errors of float32 iterates.
    Gradient flow is the limit of small steps: gradient descent lags behind it by a time
    proportional to the learning rate, and only balanced weights that are diagonal in U and
    V follow it mode by mode. Nonlinear layers between the weights cannot be detected; with
    them, the product is not the map of the network. Modes of equal strength are an
    arbitrary basis of the space that they span.

    References
    ----------
    .. [1] A. M. Saxe, J. L. McClelland, S. Ganguli, "Exact solutions to the nonlinear
       dynamics of learning in deep linear neural networks", 2014, arXiv 1312.6120.
    .. [2] S. Arora, N. Cohen, E. Hazan, "On the Optimization of Deep Networks: Implicit
       Acceleration by Overparameterization", 2018, arXiv 1802.06509.
    """
    names = _checked_layers(run, layers)
    if not 0 <= start < run.n_steps:
        raise ValueError(
            f"`start` must be one of the {run.n_steps} steps of {run.location}; got "
            f"{start}."
        )
    matrix = _correlation(run, correlation, names)
    convention = loss or run.attrs.get("loss_convention", "half-sum")
    lr = run.steps["lr"].values
    times = time_of_steps(lr, 1, loss=convention, n_outputs=len(matrix))
    time = np.concatenate([[0.0], np.cumsum(times[:-1])])
    left, strength, right = np.linalg.svd(matrix, full_matrices=False)
    strength[strength < STRENGTH_RTOL * strength[0]] = 0
    measured = _measure(run, names, left, right)
    modes = measured["modes"]
    closed_form = np.full(modes.shape, np.nan)
    expected_half = np.full(len(strength), np.nan)
    for i, value in enumerate(strength):
        flow: Any = {
            "strength": float(value),
            "initial": float(modes[start, i]),
            "depth": len(names),
        }
        since = time[start:] - time[start]
        closed_form[start:, i] = mode_strength(since, **flow)
        if value > 0 and flow["initial"] > 0:
            expected_half[i] = time[start] + half_time(**flow)
    values = {
        **measured,
        "closed_form": closed_form,
        "error": modes - closed_form,
        "half_time": _half_times(time, modes, strength),
        "half_time_closed_form": expected_half,
    }
    variables = {name: (DIMS[name], values[name]) for name in LONG_NAMES}
    labels = {"long_name": "time of the gradient flow", "units": "1"}
    coordinates = step_coordinates(run) | {
        "time": (STEP, time, labels),
        "mode": np.arange(len(strength)),
        "strength": ("mode", strength, {"long_name": "singular value", "units": "1"}),
    }
    attributes = {
        "run": run.location,
        "depth": len(names),
        "layers": list(names),
        "loss_convention": convention,
        "start": start,
        "source": SOURCE,
    }
    result = xr.Dataset(variables, coordinates, attributes)
    return index_epochs(describe(result, LONG_NAMES))


def _checked_layers(run: Run, layers: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the weights; raise unless they can be multiplied."""
    if not run.spec.exact:
        raise ValueError(
            f"{run.location} holds sketches, and the modes need whole iterates. Record "
            "with exact=True (traj-train run ... --exact)."
        )
    shapes = dict(zip(run.layout.names, run.layout.shapes, strict=True))
    names = run.layout.names if layers is None else tuple(layers)
    if unknown := [name for name in names if name not in shapes]:
        raise KeyError(f"No layers {unknown} in {run.location}; it has {list(shapes)}.")
    chosen = [shapes[name] for name in names]
    if not chosen or any(len(shape) != 2 for shape in chosen):
        raise ValueError(
            f"Weights to multiply must be matrices; got the shapes {chosen} of "
            f"{list(names)}. Choose some by `layers`."
        )
    for i in range(1, len(chosen)):
        if chosen[i][1] != chosen[i - 1][0]:
            raise ValueError(
                f"{names[i]!r} of shape {chosen[i]} cannot follow {names[i - 1]!r} of "
                f"shape {chosen[i - 1]}. Give `layers` in order from inputs to outputs."
            )
    return names


def _correlation(
    run: Run, given: npt.ArrayLike | None, names: Sequence[str]
) -> FloatArray:
    """Return the correlation of targets and inputs, float64 (n_out, n_in)."""
    if given is None:
        try:
            given = run.attrs["input_output_correlation"]
        except KeyError as error:
            raise KeyError(
                f"{run.location} does not say what its modes are. Pass `correlation`, or "
                "record with attrs={'input_output_correlation': ...}."
            ) from error
    matrix = np.asarray(given, float)
    shapes = dict(zip(run.layout.names, run.layout.shapes, strict=True))
    expected = (shapes[names[-1]][0], shapes[names[0]][1])
    if matrix.shape != expected:
        raise ValueError(
            f"The correlation has the shape {matrix.shape}, but the network maps "
            f"{expected[1]} inputs to {expected[0]} outputs; expected {expected}."
        )
    return matrix


def _measure(
    run: Run, names: Sequence[str], left: FloatArray, right: FloatArray
) -> dict[str, FloatArray]:
    """Return the modes (step, mode) and the variables without a closed form (step,)."""
    n_modes = left.shape[1]
    diagonal = np.arange(n_modes)
    by_step = ("between_modes", "effective_rank", "imbalance", "drift")
    result = {name: np.full(run.n_steps, np.nan) for name in by_step}
    result["modes"] = np.full((run.n_steps, n_modes), np.nan)
    first: list[FloatArray] = []
    for steps, tensors in iterates(run):
        weights = [tensors[name] for name in names]
        product = reduce(lambda before, after: after @ before, weights)
        conserved = imbalance(weights)
        first = first or [matrix[:1] for matrix in conserved]
        in_modes = left.T @ product @ right.T
        result["modes"][steps] = in_modes[:, diagonal, diagonal]
        in_modes[:, diagonal, diagonal] = 0
        result["between_modes"][steps] = abs(in_modes).max((1, 2))
        is_known = np.isfinite(product.sum((1, 2)))
        spectra = np.linalg.svd(np.where(is_known[:, None, None], product, 0))[1]
        result["effective_rank"][steps] = np.where(
            is_known, effective_rank(spectra), np.nan
        )
        result["imbalance"][steps] = _largest(conserved, len(product))
        change = [
            matrix - start for matrix, start in zip(conserved, first, strict=True)
        ]
        result["drift"][steps] = _largest(change, len(product))
    return result


def _half_times(
    time: FloatArray, modes: FloatArray, strength: FloatArray
) -> FloatArray:
    """Return the time at which each mode first reaches half of its strength (mode,)."""
    result = np.full(len(strength), np.nan)
    for i, half in enumerate(strength / 2):
        above = np.flatnonzero(np.greater_equal(modes[:, i], half))
        if half > 0 and len(above):
            k = int(above[0])
            bracket = slice(max(0, k - 1), k + 1)
            result[i] = np.interp(half, modes[bracket, i], time[bracket])
    return result


def _largest(matrices: Sequence[FloatArray], n_steps: int) -> FloatArray:
    """Return the largest absolute entry of the matrices (step,), 0 without matrices."""
    entries = [abs(matrix).max((1, 2)) for matrix in matrices]
    return np.asarray(np.max([np.zeros(n_steps), *entries], 0))


def iterates(run: Run) -> Iterator[tuple[slice, Mapping[str, FloatArray]]]:
    """Yield spans of steps of an exact run, and their layers by name (step, *shape)."""
    # Values are float64, and those of a step belong to the iterate before that step.
    whole, layout = slice(0, run.layout.size), run.layout
    n_per_read = max(1, READ_BYTES // (8 * layout.size))
    columns = (layout.names, layout.shapes, layout.offsets, layout.sizes)
    ends = pairwise([*run.stored.starts, run.n_steps])
    for window, (start, end) in enumerate(ends):
        span = slice(int(start), min(int(end), run.n_steps))
        for steps in slices(span, n_per_read):
            anchor = run.stored.anchors.decode(window, whole).astype(np.float64)
            x = anchor + run.stored.large_rows("displacement", steps, whole)
            layers = {
                name: x[:, offset : offset + size].reshape(-1, *shape)
                for name, shape, offset, size in zip(*columns, strict=True)
            }
            yield steps, layers
