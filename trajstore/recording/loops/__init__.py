"""Checks and steps for training loops of every kind.

`marks` notices that parameters were moved, `held` that an optimizer holds other tensors, `closures`
finds the gradient of a step among the evaluations of a closure, `idle` tells calls of `step` that
train nothing, and `notices` makes warnings point at the user's line. The package may import
`trajstore.tracking` and below.
"""
