"""Backends that measure steps, one for each kind of device.

`protocol` says what a backend does, and `choose` picks one; begin there. `cpu` runs compiled
loops (`cpu_kernels`, Numba), `eager` plain torch operations on any device and on shards, and
`triton` compiled loops on CUDA (`triton_kernels`, `triton_tables`). All give the same numbers
up to rounding; `columns` says where in `tables` they go. May import `trajstore.format`,
`trajstore.sketch`, `trajstore.sketch_torch`, and `past_anchors`, `placement` and `precision` of
`trajstore.tracking`.
"""
