"""Inspect, verify, recover and plan stores on the command line: ``traj-store``.

Contents: the commands (`main`, `plan`), and the command line (`command_line`) that
`traj-train` and `traj-analyze` also use.

May import: every package of trajstore except `integrations`; never torch directly.

Begin with `main`.
"""
