"""Compare gradients with each other: zigzag geometry, branches and lags.

Only the orthogonal cosines of `lagged_gradients` need a target. This package may import
`analyzers.geometry`, `analyzers._execution` and `analyzers._engine`.

Start with `zigzag`, the cosine of the gradients of adjacent steps. `segments` finds the
parts of a path that zigzag, `layers` measures zigzag layer by layer, and `branches` compares
a run with branches that have other learning rates. `lag_curve` and `lagged_gradients` compare
gradients that lie further apart. `plots` and `command` show the results.
"""
