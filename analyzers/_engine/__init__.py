"""Engine of the analyses: products of recorded gradients with a target chosen later.

The analyses of `analyzers.geometry`, `analyzers.gradients`, `analyzers.conditions` and
`analyzers.curvature` build on this package. It may import `trajstore`, Dask and xarray,
but no other package of `analyzers`; `analyzers._engine.arrays` may import only NumPy, SciPy,
Numba and `trajstore.sketch`.

Start with `tasks`, which turns an analysis into a graph. `vectors` decodes the anchors of
successive windows and multiplies what is stored by the target, and `combine` computes the quantities
from these products. For exact recordings, `exact` replaces both. The other modules read recorded
tables and probes, and label results.
"""
