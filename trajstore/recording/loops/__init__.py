"""Checks and steps for training loops of every kind.

`watch` notices that parameters were moved, `held` that an optimizer holds other tensors, `closures`
finds the gradient of a step among the evaluations of a closure, `windows` begins windows, `closing`
tells what a recording lacks, `lookout` finds trouble in rows that wait to be written, and `notices`
makes warnings point at the user's line. The package may import
`trajstore.tracking` and below.
"""
