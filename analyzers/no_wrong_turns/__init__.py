"""Figures and statements of the paper "No Wrong Turns", from recorded runs.

`runs` finds runs in a directory and chooses those that a comparison needs. `figures` is
the table of figures; their panels are made in `by_setting`, `single_runs`, `controls` and
`measurements` from `curves`. `claims` tests the statements, and `page` writes both to one
page. Begin with `command`, whose two commands use all of them. May import every other
package of `analyzers`.
"""
