"""The estimator in NumPy: sketches and probes of gradients, and codes of anchors.

Analysis uses this package to decode. Tests use it as the reference implementation for
`trajstore.sketch_torch` and the backends of `trajstore.tracking`: `Sketch.encode`,
`Probes.__call__`, `onebit.encode`, `rotation.rotate`, `deltas.encode` and
`weights.tensor_weights` run only in tests. Outside tests, `Fold.__call__` only folds buckets to
probes. Begin with `sketch`, which combines `fold`, `rotation` and `onebit`. `weights` balances
the layers, `probes` makes the fixed projections, `signs` draws all random bits, and `deltas`
codes anchors. `compiled` decodes many sketches faster; it alone needs Numba. May import `trajstore.format`; needs neither torch nor a store.
"""
