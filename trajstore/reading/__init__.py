"""Reading of stores: from a path to lazy datasets, targets and reports of damage.

Begin with `run`: `open_run` and the public class `Run`. Behind it, `stored_rows` caches
chunks and reads damage as NaN, `anchors` decodes the anchors of windows, `epochs` and
`lazy_rows` make datasets selectable and lazy. `target` finds the points that analyses
measure against, `results` their stores of results; `verify` looks for damage; `version`
sends runs to other processes.

Imports the format, the sketches in NumPy and `trajstore.store`; no torch, no Dask.
"""
