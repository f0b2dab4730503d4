"""Tests of the paper's statements on recorded runs.

Begin with `table`, which lists every statement with the runs, the statistic and the
criterion that decide it. `engine.findings` evaluates the table. `statistics` reduces a run
to a number with its standard error, `criteria` turns numbers into outcomes, and `verdict`
defines what `statistics` and `criteria` share. The package may import
`analyzers.no_wrong_turns.runs` and the layers below.
"""
