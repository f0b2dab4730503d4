"""Average the cosine between two gradients as a function of their lag."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers._engine.arrays.probed import cosine, cosine_errors, scaled
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
    of different pairs agree as far as their gradients do. The standard error of the mean takes
    this into account: it adds up the errors of the pairs probe by probe (the infinitesimal
    jackknife). A run recorded with ``exact=True`` has standard errors of 0.
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
    values = np.full((len(bases), len(lag)), np.nan)
    error: npt.NDArray[np.float64] | float = 0.0
    for i, base in enumerate(bases):
        exists = base + lag < run.n_steps
        needed, position = np.unique(
            np.append(base + lag[exists], base), return_inverse=True
        )
        gradients, _ = read_probes(run, needed)
        first, second = gradients[position[:-1]], gradients[position[-1]]
        cosines = scaled(cosine(first, second), error_ratios(run, bases[i : i + 1]))
        values[i, exists] = cosines.value
        if not run.spec.exact and exists.any():
            errors = np.zeros((len(lag), gradients.shape[-1]))
            errors[exists] = cosine_errors(first, second, cosines.stderr)
            error = error + np.nan_to_num(errors)
    pairs = xr.DataArray(values, {"lag": lag}, ("pair", "lag"))
    n = pairs.notnull().sum("pair")
    curve = xr.Dataset({"cosine": pairs.mean("pair")})
    total = np.linalg.norm(np.broadcast_to(error, (len(lag), run.spec.probes)), axis=1)
    curve["cosine_stderr"] = xr.DataArray(total, dims="lag") / n.where(n > 0)
    curve["spread"] = pairs.std("pair")
    curve["n_pairs"] = n
    return describe(curve, LONG_NAMES).assign_attrs(run=run.location)
