"""Compare gradients several steps apart, and the iterates that they belong to."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers._engine.arrays.geometry import Estimate
from analyzers._engine.arrays.probed import cosine, length, scaled
from analyzers._engine.labels import describe, step_coordinates
from analyzers._engine.probes import error_ratios, read_probes, rounding_squares
from analyzers._engine.slices import slices
from analyzers._engine.tables import read_tables
from analyzers._engine.tasks import task
from analyzers.geometry.path_geometry import SOURCE, analysis_target, path_geometry
from trajstore.format.arrays import STEP
from trajstore.reading.accepts_path import accepts_path
from trajstore.reading.epochs import index_epochs
from trajstore.reading.run import Run
from trajstore.reading.target import Target, TargetLike

FloatArray = npt.NDArray[np.floating[Any]]

LAGS: Final = (1, 2, 5, 10, 20, 50)
"""Steps between the two gradients of a pair, as in the published code."""

EVERY: Final = 51
"""Steps between the first gradients of successive pairs, as in the published code."""

BASES: Final = 64
"""Number of first gradients that one task compares with later gradients."""

ROWS: Final = 16
"""Rows of the target's fold to probe in one batch."""

DESCRIPTIONS: Final = {
    "cosine": ("cosine of two gradients", "<g_j, g_k> / (|g_j| |g_k|)"),
    "orthogonal_cosine": (
        "cosine of two gradients after removing their parts along x - x*",
        "with g - <g, x - x*> / |x - x*|^2 (x - x*) instead of g",
    ),
    "distance": ("distance of two iterates", "|x_j - x_k|"),
}
"""Long names and definitions of the quantities."""

NAMES: Final = [name for q in DESCRIPTIONS for name in (q, f"{q}_stderr")]


@accepts_path
def lagged_gradients(
    run: Run,
    *,
    reference: TargetLike = "final",
    lags: Sequence[int] = LAGS,
    every: int = EVERY,
) -> xr.Dataset:
    r"""Return cosines of gradients several steps apart, and distances of their iterates.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`, or by `trajstore.Run.measured`; the rows
        of a measurement count as steps.
    reference : str, int, Run or mapping, default: "final"
        The target x*, as in `path_geometry`.
    lags : sequence of int, default: (1, 2, 5, 10, 20, 50)
        Numbers of steps from the first gradient of a pair to the second, at least 1.
    every : int, default: 51
        Steps between the first gradients of successive pairs.

    Returns
    -------
    xarray.Dataset
        Lazy, with the dimensions ``step`` (the step of the first gradient, with the
        coordinates ``epoch`` and ``iteration``) and ``lag``. The variables are float64:
        ``cosine`` of the two gradients; ``orthogonal_cosine`` of the parts of the gradients
        that are orthogonal to x - x*, where x is the iterate of the gradient; and
        ``distance`` between the two iterates. Each has its standard error in a variable
        ending in ``_stderr``. Values are NaN for pairs beyond the end of the run.

    Raises
    ------
    ValueError
        If a lag or `every` is below 1, and in the cases that `path_geometry` lists.
    KeyError, TypeError
        In the cases that `path_geometry` lists.

    Notes
    -----
    All variables are computed from the fixed probes of gradients and iterates, with n numbers
    per vector. A cosine c has a standard error of about :math:`(1 - c^2) / \sqrt{n}`, and a
    distance has a relative standard error of about :math:`1 / \sqrt{2 n}`; the stored probes
    of iterates are rounded to float16, which adds to it for short distances. The distance of
    two neighbouring steps is the recorded length of the update. Errors are
    smaller where few elements hold most of a vector; by how much depends on which of these
    elements share a probe. Standard errors of cosines are therefore scaled by the observed
    errors of 64 adjacent gradients nearby, whose cosines are known exactly. This is not
    possible for measurements. The signs of the probes are the same in the whole run, so the
    errors of different pairs agree as far as their gradients do. Most gradients are nearly
    orthogonal: the error of a mean over n pairs then falls nearly like :math:`1 / \sqrt{n}`,
    as `lag_curve` states it. A run recorded with ``exact=True`` has standard errors
    of 0.

    The published code [1]_ measures the same quantities, in the second of its two training
    runs.

    References
    ----------
    .. [1] C. Guille-Escuret, H. Naganuma, K. Fatras, I. Mitliagkas, code of "No Wrong
       Turns", https://github.com/Hiroki11x/LossLandscapeGeometry.

    Examples
    --------
    >>> import analyzers, trajstore
    >>> run = trajstore.open_run(example_run)
    >>> lagged = analyzers.lagged_gradients(run, lags=[1, 5], every=12)
    >>> lagged.orthogonal_cosine.sizes["lag"]
    2
    """
    lag = np.array(lags, np.int64)
    if every < 1 or len(lag) == 0 or (lag < 1).any():
        raise ValueError(
            f"`every` and all `lags` must be at least 1, got {every} and {list(lags)}."
        )
    rsi = path_geometry(run, reference=reference).rsi.data
    target = analysis_target(run, reference)
    target_probes = task(partial(probe_target, run, target))
    bases = np.arange(0, run.n_steps, every)
    arrays = []
    for part in slices(slice(0, len(bases)), BASES):
        # The step after the last gradient of these pairs.
        stop = min(int(bases[part][-1] + lag.max()) + 1, run.n_steps)
        steps = slice(int(bases[part][0]), stop)
        compared = task(
            partial(compare, run, bases[part], lag, steps), rsi[steps], target_probes
        )
        shape = (len(NAMES), len(bases[part]), len(lag))
        arrays.append(
            da.from_delayed(  # type: ignore[no-untyped-call]
                compared, shape=shape, dtype=np.float64
            )
        )
    values = da.concatenate(arrays, axis=1)  # type: ignore[no-untyped-call]
    variables = {name: ((STEP, "lag"), values[i]) for i, name in enumerate(NAMES)}
    coordinates = {**step_coordinates(run, bases), "lag": lag}
    attributes = {"run": run.location, "reference": target.label, "source": SOURCE}
    result = xr.Dataset(variables, coordinates, attributes)
    return index_epochs(describe(result, DESCRIPTIONS))


def probe_target(run: Run, target: Target) -> FloatArray:
    """Return the probes of x*, float64 (probe,); for an exact run, return x* itself."""
    if run.spec.exact:
        return target.read(slice(0, run.layout.size)).astype(np.float64)
    probes = run.stored.probes
    if run.spec.is_packed:
        whole = run.stored.folded(target.read(slice(0, run.layout.size)))
        return probes(whole).astype(np.float64)
    width, folded = probes.fold.width, np.zeros(probes.fold.width)
    for rows in slices(slice(0, probes.fold.n_rows), ROWS):
        elements = slice(rows.start * width, min(rows.stop * width, run.layout.size))
        signed = probes.fold.signed_rows(target.read(elements), rows.start)
        folded += probes.row_signs[rows] @ signed
    return probes.of_folded(folded.astype(np.float32)).astype(np.float64)


def compare(
    run: Run,
    bases: npt.NDArray[np.int64],
    lag: npt.NDArray[np.int64],
    steps: slice,
    rsi: FloatArray,
    target: FloatArray,
) -> FloatArray:
    """Compare the steps `bases` with later steps, float64 (quantity, base, lag)."""
    # The later steps are `lag` steps after `bases`. `rsi` holds the RSI of `steps`, a range
    # that contains `bases` and the later steps. `target` holds the probes of x*.
    # Quantities are in the order of `NAMES`.
    pairs = bases[:, None] + lag
    exists = pairs < run.n_steps
    needed = np.unique(np.concatenate([bases, pairs[exists]]))
    gradients, iterates = read_probes(run, needed)
    ratios = error_ratios(run, bases)[:, None]
    orthogonal = gradients - rsi[needed - steps.start, None] * (iterates - target)
    # A pair beyond the end here compares a step with itself, and is set to NaN below.
    pairs = np.where(exists, pairs, bases[:, None])
    first = np.searchsorted(needed, np.broadcast_to(bases[:, None], pairs.shape))
    second = np.searchsorted(needed, pairs)
    estimates = [
        scaled(cosine(gradients[first], gradients[second]), ratios),
        scaled(cosine(orthogonal[first], orthogonal[second]), ratios),
        _distances(run, needed, iterates, first, second),
    ]
    result = np.array([part for estimate in estimates for part in estimate])
    if run.spec.exact:
        result[1::2] = 0
    return np.where(exists, result, np.nan)


def _distances(
    run: Run,
    steps: npt.NDArray[np.int64],
    iterates: FloatArray,
    first: npt.NDArray[np.int64],
    second: npt.NDArray[np.int64],
) -> Estimate:
    """Return the distances of pairs of `steps`, given by their indices, (base, lag)."""
    rounding = rounding_squares(run, steps)
    difference = iterates[first] - iterates[second]
    value, stderr = length(difference, rounding[first] + rounding[second])
    if run.group.is_measurement or run.spec.exact:
        return Estimate(value, stderr)
    rows = slice(int(steps[0]), int(steps[-1]) + 1)
    update_sq = read_tables(run, rows)["update_sq"].sum(1)[steps - rows.start]
    is_next = steps[second] - steps[first] == 1
    return Estimate(
        np.where(is_next, np.sqrt(update_sq[first]), value),
        np.where(is_next, 0.0, stderr),
    )
