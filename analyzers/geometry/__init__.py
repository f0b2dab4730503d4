"""Geometry of a training path relative to a target x*: RSI, EB, gamma and the distance.

This package may import `analyzers._engine`, `analyzers._execution` and
`analyzers._reporting`, but no other topic; the other topics may import it.

Begin reading in `path_geometry`, which builds the lazy result. `stored` computes it
chunk by chunk into a store next to the run, and `epoch_means` averages it over epochs.
`theory` and `null` say what the result implies for SGD and what a random walk would give,
`average_of_epochs` makes targets, `distance_travelled` measures the path itself, and
`losses` provides losses and products for conditions on losses. `plots` and `command` show
the results.
"""
