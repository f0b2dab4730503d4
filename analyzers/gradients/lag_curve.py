"""Average the cosine between two gradients as a function of their lag."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import xarray as xr

from analyzers._engine.arrays.probed import cosine, scaled
from analyzers._engine.labels import describe
from analyzers._engine.probes import error_ratios, read_probes
from trajstore.reading.accepts_path import accepts_path
from trajstore.reading.run import Run

LAGS: Final = tuple(range(1, 21))
"""Steps between two gradients, by default. Cosines of a zigzag alternate with the lag."""

N_PAIRS: Final = 64
"""Number of pairs of gradients for each lag, by default."""

LONG_NAMES: Final = {
    "cosine": "mean cosine of two gradients",
    "spread": "standard deviation of the cosine over pairs",
    "n_pairs": "number of pairs of gradients",
}


@accepts_path
def lag_curve(
    run: Run, *, lags: Sequence[int] = LAGS, n_pairs: int = N_PAIRS
) -> xr.Dataset:
    r"""Return the mean cosine between two gradients as a function of their lag.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`, or by `trajstore.Run.measured`; the rows
        of a measurement count as steps.
    lags : sequence of int, default: 1 to 20
        Numbers of steps from the first gradient of a pair to the second, at least 1.
    n_pairs : int, default: 64
        Number of pairs for each lag; the first gradients are spread evenly over the run.

    Returns
    -------
    xarray.Dataset
        Loaded, with the dimension ``lag``. ``cosine`` is the mean over the pairs, and
        ``cosine_stderr`` its standard error. ``spread`` is the standard deviation of the
        cosine over the pairs, and includes the errors of the estimates. ``n_pairs`` is the
        number of pairs, which falls for long lags because pairs beyond the end of the run
        are left out. Values are NaN for lags as long as the run or longer.

    Raises
    ------
    ValueError
        If a lag or `n_pairs` is below 1, or the run has fewer than two steps.

    Notes
    -----
    Cosines are computed from the probes of gradients, as in `analyzers.lagged_gradients`,
    but without a target. The signs of the probes are the same in the whole run, so the errors
    of different pairs may agree. The standard error of the mean is therefore the mean of the
    standard errors of the pairs, which is an upper bound. A run recorded with ``exact=True``
    has standard errors of 0.
    """
    lag = np.array(lags, np.int64)
    if n_pairs < 1 or len(lag) == 0 or (lag < 1).any():
        raise ValueError(
            "`n_pairs` and all `lags` must be at least 1, got "
            f"{n_pairs} and {list(lags)}."
        )
    if run.n_steps < 2:
        raise ValueError(
            f"{run.location} holds {run.n_steps} steps; a pair of gradients needs two."
        )
    bases = np.unique(np.linspace(0, run.n_steps - 2, n_pairs).astype(np.int64))
    values = np.full((2, len(bases), len(lag)), np.nan)
    for i, base in enumerate(bases):
        exists = base + lag < run.n_steps
        needed, position = np.unique(
            np.append(base + lag[exists], base), return_inverse=True
        )
        gradients, _ = read_probes(run, needed)
        cosines = cosine(gradients[position[:-1]], gradients[position[-1]])
        values[:, i, exists] = scaled(cosines, error_ratios(run, bases[i : i + 1]))
    if run.spec.exact:
        values[1] = np.where(np.isnan(values[0]), np.nan, 0.0)
    pairs = xr.Dataset(
        {
            "cosine": (("pair", "lag"), values[0]),
            "cosine_stderr": (("pair", "lag"), values[1]),
        },
        {"lag": lag},
    )
    curve = pairs.mean("pair")
    curve["spread"] = pairs["cosine"].std("pair")
    curve["n_pairs"] = pairs["cosine"].notnull().sum("pair")
    return describe(curve, LONG_NAMES).assign_attrs(run=run.location)
