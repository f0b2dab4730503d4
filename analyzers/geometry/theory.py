"""Derive the progress of plain SGD towards x* from RSI and EB.

The equations are numbered as in C. Guille-Escuret, H. Naganuma, K. Fatras, I. Mitliagkas,
"No Wrong Turns: The Simple Geometry Of Neural Networks Optimization Paths", 2023, section
3, arXiv 2306.11922. The copies of the paper available to us lack the formulas, but these
follow from the definitions of RSI and EB.
"""

import xarray as xr

from analyzers._engine.arrays.geometry import FROM_DISTANCE
from analyzers._engine.labels import describe


def step_contraction(geometry: xr.Dataset, *, lr: float | xr.DataArray) -> xr.Dataset:
    r"""Return the change of the squared distance to x* in a step of plain SGD, equation (4).

    With :math:`\eta` the learning rate,

    .. math:: \frac{|x_k - \eta g_k - x^*|^2}{|x_k - x^*|^2}
              = 1 - 2 \eta\, \mathrm{RSI}_k + \eta^2\, \mathrm{EB}_k^2 .

    Parameters
    ----------
    geometry : xarray.Dataset
        A result of `analyzers.path_geometry`; may be lazy.
    lr : float or xarray.DataArray
        The learning rate, or the learning rate of every step, such as ``run.steps.lr``.

    Returns
    -------
    xarray.Dataset
        Lazy if `geometry` is lazy. ``ratio`` and ``ratio_stderr`` have the dimensions of
        ``geometry.rsi`` and units of 1. A ratio below 1 means that the step moves closer to
        x*.

    Notes
    -----
    The equation is an identity for the sampled gradient. It does not hold for momentum,
    weight decay or Adam. The error of the distance affects both RSI and EB; the standard
    error takes this into account to first order.
    """
    rsi, eb = geometry["rsi"], geometry["eb"]
    from_gradient = 2 * lr * _own_error_of_rsi(geometry)
    from_rsi, from_eb = (_from_distance(geometry, name) for name in ("rsi", "eb"))
    from_distance = 2 * lr**2 * eb * from_eb - 2 * lr * from_rsi
    return _with_stderr(
        "ratio",
        1 - 2 * lr * rsi + lr**2 * eb**2,
        (from_gradient**2 + from_distance**2) ** 0.5,
        long_name="ratio of the squared distances to x* after and before a step",
    )


def locally_optimal_lr(geometry: xr.Dataset) -> xr.Dataset:
    r"""Return the learning rate whose step ends closest to x*, equation (5).

    .. math:: \eta^*_k = \frac{\mathrm{RSI}_k}{\mathrm{EB}_k^2}

    Parameters
    ----------
    geometry : xarray.Dataset
        A result of `analyzers.path_geometry`; may be lazy.

    Returns
    -------
    xarray.Dataset
        Lazy if `geometry` is lazy. ``lolr`` and ``lolr_stderr`` are NaN where RSI is not
        positive: there, no step along the negative gradient moves closer to x*. The variable
        ``lolr`` of `analyzers.path_geometry` keeps its values where RSI is not positive.
    """
    rsi, eb = geometry["rsi"], geometry["eb"]
    return _with_stderr(
        "lolr",
        (rsi / eb**2).where(rsi > 0),
        _error_of_lolr(geometry).where(rsi > 0),
        long_name="locally optimal learning rate",
    )


def guaranteed_decrease(geometry: xr.Dataset) -> xr.Dataset:
    r"""Return the ratio of squared distances after and before the best step, equation (6).

    The best step has the learning rate :math:`\eta^*_k` of `locally_optimal_lr`:

    .. math:: \frac{|x_k - \eta^*_k g_k - x^*|^2}{|x_k - x^*|^2} = 1 - \gamma_k^2

    Parameters
    ----------
    geometry : xarray.Dataset
        A result of `analyzers.path_geometry`; may be lazy.

    Returns
    -------
    xarray.Dataset
        Lazy if `geometry` is lazy. ``ratio`` and ``ratio_stderr`` have units of 1, and are
        NaN where RSI is not positive.

    Notes
    -----
    The square of an estimate of gamma is biased upwards by the variance of the estimate, so
    the ratio of a single step is too small where ``gamma_stderr`` is not much smaller than
    gamma.
    """
    gamma, is_defined = geometry["gamma"], geometry["rsi"] > 0
    return _with_stderr(
        "ratio",
        (1 - gamma**2).where(is_defined),
        (2 * abs(gamma) * geometry["gamma_stderr"]).where(is_defined),
        long_name="ratio of the squared distances to x* after and before the best step",
    )


def linear_rate(geometry: xr.Dataset) -> xr.Dataset:
    r"""Return the rate of convergence that the extremes of RSI and EB guarantee, equation (7).

    Let :math:`\mu = \min_k \mathrm{RSI}_k` and :math:`L = \max_k \mathrm{EB}_k`. SGD with
    the fixed learning rate :math:`\mu / L^2` satisfies

    .. math:: |x_k - x^*|^2 \le \Big( 1 - \frac{\mu^2}{L^2} \Big)^k |x_0 - x^*|^2

    as long as no step has a smaller RSI or a larger EB.

    Parameters
    ----------
    geometry : xarray.Dataset
        A result of `analyzers.path_geometry`; may be lazy. Select the steps that the
        rate should cover; leave out the last epoch, where RSI and EB blow up.

    Returns
    -------
    xarray.Dataset
        Lazy if `geometry` is lazy. The variables are ``mu``, ``L``, the factor ``rate``
        (:math:`1 - \mu^2 / L^2`) and the learning rate ``lr``, each with its standard error in
        a variable ending in ``_stderr``. All are scalars, or have the dimension ``layer``.
        ``rate`` and ``lr`` are NaN where mu is not positive, since nothing is guaranteed
        there.

    Notes
    -----
    The smallest of many estimates is on average below the smallest true value, so mu is
    biased downwards for sketched runs. The standard errors come from the two steps that
    attain the extremes, to first order.
    """
    rsi, eb = geometry["rsi"], geometry["eb"]
    mu, largest = rsi.min("step"), eb.max("step")
    mu_stderr = geometry["rsi_stderr"].where(rsi == mu).max("step")
    largest_stderr = geometry["eb_stderr"].where(eb == largest).max("step")
    mu_part, largest_part = mu_stderr / mu, largest_stderr / largest
    squared, is_defined = (mu / largest) ** 2, mu > 0
    rate_stderr = 2 * squared * (mu_part**2 + largest_part**2) ** 0.5
    lr = mu / largest**2
    lr_stderr = lr * (mu_part**2 + (2 * largest_part) ** 2) ** 0.5
    return xr.merge(
        [
            _with_stderr("mu", mu, mu_stderr, long_name="smallest RSI"),
            _with_stderr("L", largest, largest_stderr, long_name="largest EB"),
            _with_stderr(
                "rate",
                (1 - squared).where(is_defined),
                rate_stderr.where(is_defined),
                long_name="factor of the squared distance per step",
            ),
            _with_stderr(
                "lr",
                lr.where(is_defined),
                lr_stderr.where(is_defined),
                long_name="fixed learning rate that guarantees the factor",
            ),
        ]
    )


def _from_distance(geometry: xr.Dataset, name: str) -> xr.DataArray:
    """Return the error of RSI or EB if the distance is one standard error too long."""
    if f"{name}{FROM_DISTANCE}" in geometry:
        return geometry[f"{name}{FROM_DISTANCE}"]
    # Without weight decay, RSI is the product divided by the squared distance.
    power = {"rsi": 2, "eb": 1}[name]
    return -power * geometry[name] * geometry["eb_stderr"] / geometry["eb"]


def _own_error_of_rsi(geometry: xr.Dataset) -> xr.DataArray:
    """Return the part of the standard error of RSI that is not due to the distance."""
    shared = _from_distance(geometry, "rsi")
    return (geometry["rsi_stderr"] ** 2 - shared**2).clip(min=0) ** 0.5


def _error_of_lolr(geometry: xr.Dataset) -> xr.DataArray:
    """Return the standard error of RSI / EB^2, in which the distance cancels."""
    if "lolr_stderr" in geometry:
        return geometry["lolr_stderr"]
    return _own_error_of_rsi(geometry) / geometry["eb"] ** 2


def _with_stderr(
    name: str, value: xr.DataArray, stderr: xr.DataArray, *, long_name: str
) -> xr.Dataset:
    return describe(
        xr.Dataset({name: value, f"{name}_stderr": stderr}), {name: long_name}
    )
