"""The estimator in torch, which `trajstore.tracking` runs on the training device.

Every module except `uploads` computes the same numbers as its namesake in `trajstore.sketch`, up
to rounding, and is tested against that module. Begin with `sketch`. May import
`trajstore.format` and `trajstore.sketch`; needs torch, but no store.
"""
