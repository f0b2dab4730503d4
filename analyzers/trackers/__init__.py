"""Send a run, its stored results and its figures to an experiment tracker.

This package computes nothing: `send` reads what is stored, and gives it to a sink of
`trajstore.trackers`. It may import all other packages of `analyzers`.
"""
