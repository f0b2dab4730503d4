"""Mean cosine between gradients as a function of their lag."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import xarray as xr

from analyzers._engine.arrays.probed import cosine, scaled
from analyzers._engine.labels import describe
from analyzers._engine.probes import error_ratios, read_probes
from trajstore.reading.run import Run

LAGS: Final = tuple(range(1, 21))
"""Steps between two gradients. A zigzag differs at odd and even lags."""

N_PAIRS: Final = 64
"""Pairs of gradients of each lag."""

LONG_NAMES: Final = {
    "cosine": "mean cosine of gradients",
    "spread": "standard deviation over pairs",
    "n_pairs": "pairs of gradients",
}


def lag_curve(
    run: Run, *, lags: Sequence[int] = LAGS, n_pairs: int = N_PAIRS
) -> xr.Dataset:
    r"""Mean cosine between gradients as a function of their lag.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`, or by `trajstore.Run.measured`, whose rows
        count as steps.
    lags : sequence of int, default: 1 to 20
        Steps from one gradient to the other, at least 1.
    n_pairs : int, default: 64
        Pairs of each lag; their first gradients are spread evenly over the run.

    Returns
    -------
    xarray.Dataset
        Loaded. Dimension ``lag``. ``cosine``, the mean over the pairs, and
        ``cosine_stderr``; ``spread``, the standard deviation over the pairs, including the
        errors of the estimates; ``n_pairs``, fewer for long lags, which reach beyond the
        end of the run. NaN for lags as long as the run.

    Raises
    ------
    ValueError
        If a lag or `n_pairs` is below 1, or the run has fewer than two steps.

    Notes
    -----
    Computed from the probes of gradients, as in `analyzers.lagged_gradients`, but without a
    target. The signs of the probes are the same in the whole run, so the errors of all pairs
    may be alike; the standard error of the mean is therefore the mean of the standard errors
    of the pairs, an upper bound. A run recorded with ``exact=True`` has standard errors of 0.
    """
    lag = np.array(lags, np.int64)
    if n_pairs < 1 or len(lag) == 0 or (lag < 1).any():
        raise ValueError(
            "`n_pairs` and all `lags` must be at least 1, got "
            f"{n_pairs} and {list(lags)}."
        )
    if run.n_steps < 2:
        raise ValueError(
            f"{run.location} holds {run.n_steps} steps; two gradients need two."
        )
    bases = np.unique(np.linspace(0, run.n_steps - 2, n_pairs).astype(np.int64))
    values = np.full((2, len(bases), len(lag)), np.nan)
    for i, base in enumerate(bases):
        exists = base + lag < run.n_steps
        needed, place = np.unique(
            np.append(base + lag[exists], base), return_inverse=True
        )
        gradients, _ = read_probes(run, needed)
        found = cosine(gradients[place[:-1]], gradients[place[-1]])
        values[:, i, exists] = scaled(found, error_ratios(run, bases[i : i + 1]))
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
