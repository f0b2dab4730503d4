"""How gradients lose their likeness the more steps lie between them."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import xarray as xr

from analyzers._engine.arrays.probed import cosine, scaled
from analyzers._engine.probes import error_ratios, read_probes
from trajstore.reading.run import Run

LAGS: Final = tuple(range(1, 21))
"""Steps between two gradients: odd and even ones, which a zigzag tells apart."""

N_PAIRS: Final = 64
"""Pairs of gradients of each lag."""


def lag_curve(
    run: Run, *, lags: Sequence[int] = LAGS, n_pairs: int = N_PAIRS
) -> xr.Dataset:
    r"""Mean cosine of gradients so many steps apart.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`, or by `trajstore.Run.measured`, whose rows
        are counted as steps are.
    lags : sequence of int, default: 1 to 20
        Numbers of steps, at least 1, from one gradient to the other.
    n_pairs : int, default: 64
        Pairs of each lag, whose first gradients lie evenly on the run.

    Returns
    -------
    xarray.Dataset
        Loaded. Dimension ``lag``. ``cosine``, the mean over the pairs, and
        ``cosine_stderr``; ``spread``, the standard deviation over the pairs, part of
        which is that of the estimates; ``n_pairs``, of which there are fewer near the
        end of a run. NaN for lags as long as the run.

    Raises
    ------
    ValueError
        If a lag or `n_pairs` is below 1, or the run has fewer than two steps.

    Notes
    -----
    From the probes of gradients, as in `analyzers.lagged_gradients`, without a reference
    point. The probes' signs are the same in the whole run and errors of pairs may all be
    alike, so that the standard error of the mean is the mean of those of the pairs: an
    upper bound. A run recorded with ``exact=True`` has standard errors of 0.
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
        is_there = base + lag < run.n_steps
        needed, place = np.unique(
            np.append(base + lag[is_there], base), return_inverse=True
        )
        gradients, _ = read_probes(run, needed)
        found = cosine(gradients[place[:-1]], gradients[place[-1]])
        values[:, i, is_there] = scaled(found, error_ratios(run, bases[i : i + 1]))
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
    names = {
        "cosine": "mean cosine of gradients",
        "cosine_stderr": "standard error of cosine",
        "spread": "standard deviation over pairs",
        "n_pairs": "pairs of gradients",
    }
    for name, long_name in names.items():
        curve[name].attrs = {"long_name": long_name, "units": "1"}
    return curve.assign_attrs(run=run.location)
