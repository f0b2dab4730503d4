"""Measure steps of a training run on the training device. Needs torch.

`tracker.Tracker` follows the parameters: begin there. It keeps the anchor of the window and
the codes of past ones (`past_anchors`), and has a backend measure each step (`backends`, where
`protocol` says what a backend does). `placement` knows which rank holds which elements,
`scaling` the factor of a GradScaler, `precision` keeps float32 products exact. May import
`trajstore.format`, `trajstore.sketch` and `trajstore.sketch_torch`; nothing here touches a
store.
"""
