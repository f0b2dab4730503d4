"""Engine of the analyses: products of recorded gradients with a target chosen later.

The analyses of `analyzers.geometry`, `analyzers.gradients`, `analyzers.conditions` and
`analyzers.curvature` build on this package. It may import `trajstore`, Dask and xarray,
but no other package of `analyzers`; `analyzers._engine.arrays` needs NumPy and SciPy only.

Start with `tasks`, which turns an analysis into a graph. `walk` decodes the anchors of
successive windows, `fit` regresses target - anchor on the recorded basis, `project`
estimates the products with the residual from the sketches, and `combine` computes the
quantities from these parts. `exact` replaces the last three for exact recordings. The
other modules read recorded tables and probes, and label results.
"""
