"""Measure the steps of a training run on the training device. Needs torch.

Begin with `tracker.Tracker`, which follows the parameters. It keeps the anchor of the current
window and the codes of past anchors (`past_anchors`), and lets a backend measure each step
(`backends`; its module `protocol` describes the methods of a backend). `placement` records which
rank holds which elements, `scaling` finds the factor of a GradScaler, and `precision` keeps
float32 products at full precision. May import `trajstore.format`, `trajstore.sketch` and
`trajstore.sketch_torch`. No module of this package accesses a store.
"""
