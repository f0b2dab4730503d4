"""Comparisons of gradients with each other: zigzag geometry, branches and lags.

Nothing here needs a target, except the orthogonal cosines of `lagged_gradients`. This
package may import `analyzers.geometry`, `analyzers._execution` and `analyzers._engine`.

Begin reading in `zigzag`, the cosine of the gradients of adjacent steps. `segments` finds
the parts of a path that zigzag, `layers` does so layer by layer, and `branches` compares
a run with branches of other learning rates. `lag_curve` and `lagged_gradients` compare
gradients that lie further apart. `plots` and `command` show the results.
"""
