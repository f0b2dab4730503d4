"""Engine of the analyses: products of recorded gradients with a target chosen later.

The analyses of `analyzers.geometry`, `analyzers.gradients`, `analyzers.conditions` and
`analyzers.curvature` build on this package. It may import `trajstore`, Dask and xarray,
but no other package of `analyzers`; `analyzers._engine.arrays` may import only NumPy, SciPy
and `trajstore.sketch`.

Start with `tasks`, which turns an analysis into a graph. `walk` decodes the anchors of
successive windows, `fit` regresses target - anchor on the recorded basis, `project`
estimates the products with the residual from the sketches, and `combine` computes the
quantities from these parts. For exact recordings, `exact` replaces `fit`, `project` and
`combine`. The other modules read recorded tables and probes, and label results.
"""
