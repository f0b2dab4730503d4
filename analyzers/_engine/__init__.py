"""Engine of the analyses: products of recorded gradients with a target chosen later.

The analyses of `analyzers.geometry`, `analyzers.gradients`, `analyzers.conditions` and
`analyzers.curvature` build on this package. It may import `trajstore`, Dask and xarray,
but nothing else of `analyzers`; `analyzers._engine.arrays` needs NumPy and SciPy only.

Begin reading in `tasks`, which turns an analysis into a graph. `walk` decodes the anchors
of the windows in order, `fit` regresses target - anchor on the recorded basis, `project`
estimates the products with the residual from the sketches, and `combine` puts the
quantities together; `exact` does all of this for exact recordings. The other modules read
recorded tables and probes, and label results.
"""
