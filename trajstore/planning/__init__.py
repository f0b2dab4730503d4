"""Predict the size, the memory and the errors of a recording before it is made.

Contents: the prediction for given options (`estimate`), from errors of measured runs (`errors`) or of
a similar recorded run (`similar`, `recorded`), and the choice of options for a given error or size
(`search`).

May import: `trajstore.format`, `trajstore.sketch` and the packages that they import; never torch.

Begin with `estimate.plan_recording`; the command `traj-store plan` prints its result.
"""
