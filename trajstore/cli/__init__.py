"""The command ``traj-store``: what a store holds, whether it is sound, what one would take.

What is here: the commands (`main`, `plan`), and the command line (`command_line`) that
`traj-train` and `traj-analyze` use too.

May import: every package of trajstore except `integrations`; never torch directly.

Begin with `main`.
"""
