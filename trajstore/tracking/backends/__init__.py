"""Backends that measure steps, for different kinds of devices.

Begin with `protocol`, which describes the methods of a backend, and `choose`, which picks a
backend. `cpu` runs compiled loops (Numba), `eager` runs plain torch operations on
any device and on shards, and `triton` runs compiled loops on CUDA (`triton_kernels`,
`triton_tables`). All backends measure the same numbers up to rounding; `columns` lists the
columns of `tables` for these numbers. May import `trajstore.format`,
`trajstore.sketch`, `trajstore.sketch_torch`, and `past_anchors`, `placement` and `precision` of
`trajstore.tracking`.
"""
