"""The estimator in torch, on the training device: what `trajstore.tracking` runs in every step.

Every module but `uploads` computes the same as its namesake in `trajstore.sketch`, up to
rounding, and is tested against it; begin with `sketch`. May import `trajstore.format` and
`trajstore.sketch`; needs torch, and no store.
"""
