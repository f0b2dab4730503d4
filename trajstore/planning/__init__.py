"""Predict the size, the memory and the errors of a recording before it is made.

Contents: the prediction for given options (`estimate`), and the choice of options for a
given error or size (`search`).

May import: `trajstore.format`, `trajstore.sketch` and the packages that they import; never torch.

Begin with `estimate.plan_recording`; the command `traj-store plan` prints its result.
"""
