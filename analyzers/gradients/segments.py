"""Find the segments of a path that zigzag or are smooth, and their shares of training."""

from collections.abc import Sequence
from itertools import product
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers._engine.arrays.geometry import Estimate
from analyzers._engine.labels import describe, step_coordinates
from analyzers._engine.probes import read_probes
from analyzers.gradients.arrays.segments import (
    KINDS,
    border_signs,
    displacement_share,
    find_segments,
    loss_decrease,
    running_mean,
    running_median,
    step_kinds,
    sums_by_kind,
)
from analyzers.gradients.defaults import THRESHOLD, WINDOW
from analyzers.gradients.zigzag import zigzag
from trajstore.format.arrays import STEP
from trajstore.format.attrs import uses_all_data
from trajstore.reading.accepts_path import accepts_path
from trajstore.reading.epochs import index_epochs
from trajstore.reading.run import Run

FloatArray = npt.NDArray[np.floating[Any]]

KIND: Final = "kind"
SEGMENT: Final = "segment"

# Python objects, because Zarr's specification has no fixed-width strings.
KIND_NAMES: Final = np.array(list(KINDS.values()), object)
"""Labels of the dimension ``kind``."""

WINDOWS: Final = (1, 5, 11, 21, 51)
THRESHOLDS: Final = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)

CRITERION: Final = (
    "zigzag where the running median of the cosine of adjacent gradients is below minus "
    "the threshold, smooth where the median is above the threshold, neither in between; "
    "our own criterion"
)

SEGMENT_NAMES: Final = {
    "cosine": "cosine of adjacent gradients",
    "running_cosine": "running median of the cosine",
    "label": "kind of the step: -1 zigzag, 0 neither, 1 smooth",
    "start": "first step of the segment",
    "stop": "first step after the segment",
    "segment_label": "kind of the segment: -1 zigzag, 0 neither, 1 smooth",
    "segment_path": "path length of the segment",
    "segment_decrease": "decrease of the smoothed loss in the segment",
    "smooth_loss": "running mean of the loss",
    "n_segments": "number of segments of the kind",
    "step_share": "share of the steps",
    "path_share": "share of the path length",
    "displacement_share": "share of the squared net displacement",
    "decrease": "decrease of the smoothed loss",
    "decrease_share": "share of the decrease of the smoothed loss",
}


@accepts_path
def zigzag_segments(
    run: Run,
    *,
    window: int = WINDOW,
    threshold: float = THRESHOLD,
    loss: str | None = "loss",
    smoothing: int | None = None,
) -> xr.Dataset:
    r"""Find the segments of a path that zigzag or are smooth, and their shares of training.

    Let :math:`m_k` be the median of the cosine from `zigzag` over the `window` steps around
    step k. Step k zigzags if :math:`m_k < -` `threshold`, is smooth if :math:`m_k >`
    `threshold`, and is neither otherwise. A segment consists of consecutive steps of one
    kind, as many as possible. This criterion is our own.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.
    window : int, default: 11
        Number of steps in the running median, odd; the median covers fewer steps at both
        ends of the run.
    threshold : float, default: 0.5
        Threshold for the running median, from 0 to 1. The notes explain the default, and
        `zigzag_shares` shows the effect of other values.
    loss : str or None, default: "loss"
        Name of the scalar whose decrease is attributed to segments; None to skip this.
    smoothing : int, optional
        Number of steps in the running mean of the loss, odd. Default: 11, or 1 if the run's
        metadata says that every step uses all data, so that losses have no noise.

    Returns
    -------
    xarray.Dataset
        Loaded, with units of 1, or units of the loss for decreases. The variables are

        - by ``step``, with the coordinates ``epoch`` and ``iteration``: ``cosine``,
          ``running_cosine``, ``label`` (-1 zigzag, 0 neither, 1 smooth) and, if there is a
          loss, ``smooth_loss``;
        - by ``segment``: ``start``, ``stop``, ``segment_label``, ``segment_path`` and, if
          there is a loss, ``segment_decrease``;
        - by ``kind``, with the labels ``zigzag``, ``neither`` and ``smooth``:
          ``n_segments``, ``step_share``, ``path_share``, ``displacement_share`` and, if
          there is a loss, ``decrease`` and ``decrease_share``. Displacement shares,
          decreases and decrease shares have standard errors in variables ending in
          ``_stderr``.

        A step whose cosine is unknown gets its label from the steps around it, or "neither"
        if none of their cosines is known.

    Raises
    ------
    KeyError
        If the run has no scalar with the name `loss`; the message lists its scalars.
    ValueError
        If the run has fewer than two steps or is a measurement, or if a number is out of
        range.

    Notes
    -----
    *Threshold.* Under gradient descent with the learning rate :math:`\eta`, the gradient along
    an eigenvector of the Hessian with eigenvalue :math:`\lambda` follows :math:`g_{k+1} = (1 -
    \eta \lambda) g_k`. Without noise, a single mode has a cosine of -1 or 1. A mixture of
    zigzagging and smooth modes has a cosine in between; below -0.5 or above 0.5, one kind of
    mode clearly outweighs the other. The noise of mini-batches draws the cosine towards 0,
    because the noise of two batches is independent. While the loss falls steadily, the cosine
    is about the share of the signal in :math:`|g|^2`; above 0.5 there is more signal than
    noise. Once the iterate only fluctuates about a minimum, driven by noise, the cosine is
    :math:`-\eta \lambda / 2`: it is negative at *any* learning rate, since each step must be
    undone by the steps after it. Only below -0.5 does it imply :math:`\eta \lambda > 1`,
    averaged over the modes by their share in :math:`|g|^2`. A threshold of 0.5 therefore means
    the same with and without noise, but noise may hide a zigzag in a segment that is "neither".
    The formulas with :math:`\eta \lambda` hold for plain SGD on a quadratic, but not with
    momentum, which changes the step.

    *Window.* With a median over 11 steps, a zigzag needs a majority of negative cosines:
    single negative cosines also occur on smooth paths, and under noise. In a run of pure
    noise in d dimensions, the cosines have a standard deviation of :math:`1 / \sqrt{d}`, far
    below the threshold.

    *Loss.* The decrease of a segment is the decrease of the running mean of the recorded losses
    from the first step of the segment to the first step after it. It may be negative, and the
    decreases of all segments add up to the decrease of the whole run. A loss that is less
    than `smoothing` / 2 steps from a border counts partly for the segment on the other side,
    and losses at both ends of the run are smoothed over fewer steps. Standard errors treat
    deviations from the running mean as independent noise, even where the loss itself zigzags.
    Shares mean nothing if the total decrease is not well above its standard error.

    *Path and displacement.* ``path_share`` is the exact share of :math:`\sum_k |u_k|`, where
    :math:`u_k` is the update. ``displacement_share`` is :math:`\langle D_\mathrm{kind}, D
    \rangle / |D|^2`, where D is the sum of :math:`u_k` over all steps except the last, and
    :math:`D_\mathrm{kind}` is the part of this sum that comes from steps of the kind. The
    share is estimated from the probes of iterates, with the standard error of a ratio, and is
    exact for an exact recording.
    """
    check_criterion(window, threshold)
    smoothing = check_smoothing(run, smoothing)
    cosine = zigzag(run)["cosine"].compute()
    losses = None if loss is None else losses_of(run, loss)
    lengths = update_lengths(run)
    running = running_median(cosine.values, window)
    labels = step_kinds(running, threshold)
    segments = find_segments(labels)
    signs = border_signs(segments)
    path_lengths = np.add.reduceat(np.nan_to_num(lengths), segments.start)
    variables: dict[str, Any] = {
        "cosine": (STEP, cosine.values),
        "running_cosine": (STEP, running),
        "label": (STEP, labels),
        "start": (SEGMENT, run.stored.step_numbers[segments.start]),
        "stop": (SEGMENT, run.stored.step_numbers[segments.stop - 1] + 1),
        "segment_label": (SEGMENT, segments.kind),
        "segment_path": (SEGMENT, path_lengths),
        "n_segments": (KIND, [int((segments.kind == kind).sum()) for kind in KINDS]),
        **shares(labels, lengths),
        **_with_stderr("displacement_share", _displacement(run, signs)),
    }
    if losses is not None:
        smooth = running_mean(losses, smoothing)
        last = np.minimum(segments.stop, run.n_steps - 1)
        variables["smooth_loss"] = (STEP, smooth)
        variables["segment_decrease"] = (SEGMENT, smooth[segments.start] - smooth[last])
        variables |= decreases(losses, signs, smoothing)
    coordinates = {**step_coordinates(run), KIND: KIND_NAMES}
    attributes = {
        "run": run.location,
        "criterion": CRITERION,
        "window": window,
        "threshold": threshold,
        "loss": loss or "none",
        "smoothing": smoothing,
    }
    result = xr.Dataset(variables, coordinates, attributes)
    return index_epochs(describe(result, SEGMENT_NAMES))


@accepts_path
def zigzag_shares(
    run: Run,
    *,
    windows: Sequence[int] = WINDOWS,
    thresholds: Sequence[float] = THRESHOLDS,
    loss: str | None = "loss",
    smoothing: int | None = None,
) -> xr.Dataset:
    """Return the shares of `zigzag_segments` for several windows and thresholds.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.
    windows : sequence of int, default: (1, 5, 11, 21, 51)
        Numbers of steps in the running median, odd.
    thresholds : sequence of float, default: (0, 0.1, 0.25, 0.5, 0.75, 0.9)
        Thresholds for the running median, from 0 to 1.
    loss, smoothing
        As in `zigzag_segments`.

    Returns
    -------
    xarray.Dataset
        Loaded, with the dimensions ``window``, ``threshold`` and ``kind``. The variables are
        ``step_share``, ``path_share`` and, if there is a loss, ``decrease`` and
        ``decrease_share`` with their standard errors, as in `zigzag_segments`.

    Raises
    ------
    KeyError, ValueError
        In the cases that `zigzag_segments` lists.
    """
    for window, threshold in product(windows, thresholds):
        check_criterion(window, threshold)
    smoothing = check_smoothing(run, smoothing)
    cosine = zigzag(run)["cosine"].values
    losses = None if loss is None else losses_of(run, loss)
    lengths = update_lengths(run)
    by_window = []
    for window in windows:
        running = running_median(cosine, window)
        by_threshold = []
        for threshold in thresholds:
            labels = step_kinds(running, threshold)
            variables = shares(labels, lengths)
            if losses is not None:
                signs = border_signs(find_segments(labels))
                variables |= decreases(losses, signs, smoothing)
            by_threshold.append(xr.Dataset(variables, {KIND: KIND_NAMES}))
        by_window.append(xr.concat(by_threshold, "threshold"))
    result = xr.concat(by_window, "window")
    result = result.assign_coords(window=list(windows), threshold=list(thresholds))
    attributes = {"run": run.location, "criterion": CRITERION, "smoothing": smoothing}
    return describe(result, SEGMENT_NAMES).assign_attrs(attributes)


def losses_of(run: Run, name: str) -> FloatArray:
    """Read the losses of a run, float64 (step,)."""
    if name not in run.metrics:
        raise KeyError(
            f"No losses {name!r} in {run.location}, which has the scalars "
            f"{run.metrics}; record losses by recorder.log(loss=loss), or give the name of "
            "another scalar as `loss`, or None to leave the loss out."
        )
    losses: FloatArray = run.steps[name].values
    return losses


def update_lengths(run: Run) -> FloatArray:
    """Read |u_k| of every step, float64 (step,)."""
    lengths: FloatArray = run.steps["update_norm"].values
    return lengths


def shares(labels: npt.NDArray[Any], lengths: FloatArray) -> dict[str, Any]:
    """Return the shares of steps and path length by kind, as variables."""
    by_kind = sums_by_kind(lengths, labels)
    total = by_kind.sum()
    path = by_kind / total if total > 0 else np.full(len(by_kind), np.nan)
    return {
        "step_share": (KIND, [float(np.mean(labels == kind)) for kind in KINDS]),
        "path_share": (KIND, path),
    }


def decreases(losses: FloatArray, signs: FloatArray, smoothing: int) -> dict[str, Any]:
    """Return the decrease of the loss by kind, and its share of the total, as variables."""
    decrease, share = loss_decrease(losses, signs, smoothing)
    return _with_stderr("decrease", decrease) | _with_stderr("decrease_share", share)


def _with_stderr(name: str, estimate: Estimate) -> dict[str, Any]:
    return {name: (KIND, estimate.value), f"{name}_stderr": (KIND, estimate.stderr)}


def _displacement(run: Run, signs: FloatArray) -> Estimate:
    """Return the share of each kind in the net displacement, from iterates at borders."""
    by_kind: Any = 0.0
    for k in np.flatnonzero(signs.any(0)):
        _, iterate = read_probes(run, np.array([k]))
        # The sign is 1 where a displacement begins, and -1 where it ends.
        by_kind = by_kind - signs[:, k, None] * iterate
    share = displacement_share(np.atleast_2d(by_kind))
    if run.spec.exact:
        return Estimate(share.value, np.zeros_like(share.stderr))
    return share


def check_smoothing(run: Run, smoothing: int | None) -> int:
    """Check the window of the running mean of losses, and return it or its default."""
    if smoothing is None:
        return 1 if uses_all_data(run.attrs) else WINDOW
    if smoothing < 1 or smoothing % 2 == 0:
        raise ValueError(
            f"`smoothing` must be an odd number of steps, got {smoothing}; 1 leaves "
            "the losses as they are."
        )
    return smoothing


def check_criterion(window: int, threshold: float) -> None:
    """Raise ValueError for an even window, or a threshold that is not from 0 to 1."""
    if window < 1 or window % 2 == 0:
        raise ValueError(f"`window` must be an odd number of steps, got {window}.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` must be from 0 to 1, got {threshold}.")
