"""Consequences of RSI and EB for the distance to x* after steps of plain SGD.

The equations are numbered as in C. Guille-Escuret, H. Naganuma, K. Fatras, I. Mitliagkas,
"No Wrong Turns: The Simple Geometry Of Neural Networks Optimization Paths", 2023, section
3, arXiv 2306.11922. The available copies have lost the formulas themselves, which
follow from the definitions of RSI and EB.
"""

import xarray as xr

from analyzers._engine.labels import describe


def step_contraction(geometry: xr.Dataset, *, lr: float | xr.DataArray) -> xr.Dataset:
    r"""Change of the squared distance to x* in a step of plain SGD, equation (4).

    With :math:`\eta` the learning rate,

    .. math:: \frac{|x_k - \eta g_k - x^*|^2}{|x_k - x^*|^2}
              = 1 - 2 \eta\, \mathrm{RSI}_k + \eta^2\, \mathrm{EB}_k^2 .

    Parameters
    ----------
    geometry : xarray.Dataset
        As returned by `analyzers.path_geometry`; may be lazy.
    lr : float or xarray.DataArray
        The learning rate, or one for every step, such as ``run.steps.lr``.

    Returns
    -------
    xarray.Dataset
        Lazy if `geometry` is. ``ratio`` and ``ratio_stderr``, with the dimensions of
        ``geometry.rsi`` and units of 1. Below 1 the step moves closer to x*.

    Notes
    -----
    An identity for the sampled gradient. It does not hold for momentum, weight decay or
    Adam. The error of the distance enters both RSI and EB, and is counted once, to first
    order.
    """
    rsi, eb = geometry["rsi"], geometry["eb"]
    of_gradient = 2 * lr * _own_error_of_rsi(geometry)
    of_distance = (4 * lr * rsi - 2 * lr**2 * eb**2) * _error_of_distance(geometry)
    return _with_stderr(
        "ratio",
        1 - 2 * lr * rsi + lr**2 * eb**2,
        (of_gradient**2 + of_distance**2) ** 0.5,
        long_name="squared distance to x* after a step over that before",
    )


def locally_optimal_lr(geometry: xr.Dataset) -> xr.Dataset:
    r"""Learning rate whose step ends closest to x*, equation (5).

    .. math:: \eta^*_k = \frac{\mathrm{RSI}_k}{\mathrm{EB}_k^2}

    Parameters
    ----------
    geometry : xarray.Dataset
        As returned by `analyzers.path_geometry`; may be lazy.

    Returns
    -------
    xarray.Dataset
        Lazy if `geometry` is. ``lolr`` and ``lolr_stderr``. NaN where RSI is not
        positive: no step along the negative gradient moves closer there. The variable
        ``lolr`` of `analyzers.path_geometry` is the same without that condition.
    """
    rsi, eb = geometry["rsi"], geometry["eb"]
    return _with_stderr(
        "lolr",
        (rsi / eb**2).where(rsi > 0),
        (_own_error_of_rsi(geometry) / eb**2).where(rsi > 0),
        long_name="locally optimal learning rate",
    )


def guaranteed_decrease(geometry: xr.Dataset) -> xr.Dataset:
    r"""Ratio of squared distances around a step of locally optimal length, equation (6).

    .. math:: \frac{|x_k - \eta^*_k g_k - x^*|^2}{|x_k - x^*|^2} = 1 - \gamma_k^2

    Parameters
    ----------
    geometry : xarray.Dataset
        As returned by `analyzers.path_geometry`; may be lazy.

    Returns
    -------
    xarray.Dataset
        Lazy if `geometry` is. ``ratio`` and ``ratio_stderr``, units of 1; NaN where RSI is
        not positive.

    Notes
    -----
    The square of an estimate of gamma is biased upwards by its variance, so single
    steps promise too much where ``gamma_stderr`` is not much smaller than gamma.
    """
    gamma, is_defined = geometry["gamma"], geometry["rsi"] > 0
    return _with_stderr(
        "ratio",
        (1 - gamma**2).where(is_defined),
        (2 * abs(gamma) * geometry["gamma_stderr"]).where(is_defined),
        long_name="squared distance to x* after the best step over that before",
    )


def linear_rate(geometry: xr.Dataset) -> xr.Dataset:
    r"""Rate of convergence that the extremes of RSI and EB guarantee, equation (7).

    With :math:`\mu = \min_k \mathrm{RSI}_k` and :math:`L = \max_k \mathrm{EB}_k`, SGD of
    the fixed learning rate :math:`\mu / L^2` has

    .. math:: |x_k - x^*|^2 \le \Big( 1 - \frac{\mu^2}{L^2} \Big)^k |x_0 - x^*|^2

    as long as no step has a smaller RSI or a larger EB.

    Parameters
    ----------
    geometry : xarray.Dataset
        As returned by `analyzers.path_geometry`; may be lazy. Select the steps to cover: RSI
        and EB blow up in the last epoch, which is better left out.

    Returns
    -------
    xarray.Dataset
        Lazy if `geometry` is. Scalars, or values by ``layer``: ``mu``, ``L``, ``rate``,
        the factor :math:`1 - \mu^2 / L^2`, and ``lr``, each with a ``_stderr``. ``rate``
        and ``lr`` are NaN where mu is not positive: nothing is guaranteed.

    Notes
    -----
    The smallest of many estimates is on average below the smallest of the true values, so mu
    is biased downwards for sketched runs. The standard errors come from the two steps that
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
                long_name="fixed learning rate of that factor",
            ),
        ]
    )


def _error_of_distance(geometry: xr.Dataset) -> xr.DataArray:
    """Return the relative error of the distance, the only error in EB."""
    return geometry["eb_stderr"] / geometry["eb"]


def _own_error_of_rsi(geometry: xr.Dataset) -> xr.DataArray:
    """Return the part of the error of RSI that does not come from the distance."""
    shared = 2 * geometry["rsi"] * _error_of_distance(geometry)
    return (geometry["rsi_stderr"] ** 2 - shared**2).clip(min=0) ** 0.5


def _with_stderr(
    name: str, value: xr.DataArray, stderr: xr.DataArray, *, long_name: str
) -> xr.Dataset:
    return describe(
        xr.Dataset({name: value, f"{name}_stderr": stderr}), {name: long_name}
    )
