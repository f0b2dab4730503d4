"""The estimator in NumPy: sketch and probes of gradients, and codes of anchors.

Analysis decodes with it. It is also the reference implementation that tests compare
`trajstore.sketch_torch` and the backends of `trajstore.tracking` with: `Sketch.encode`,
`Probes.__call__`, `onebit.encode`, `rotation.rotate`, `deltas.encode` and
`weights.tensor_weights` run in these comparisons only, and `Fold.__call__` elsewhere only from
buckets to probes. Begin with `sketch`, which joins `fold`, `rotation` and `onebit`; `weights`
balance the layers, `probes` are fixed for a run, `signs` has the random bits of all, and
`deltas` codes anchors. May import `trajstore.format`; needs neither torch nor a store.
"""
