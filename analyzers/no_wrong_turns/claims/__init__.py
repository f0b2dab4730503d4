"""Statements of the paper, tested on recorded runs.

Begin with `table`: every statement with the runs, the statistic and the test that decide
it. `engine.findings` evaluates the table. `statistics` reduces a run to a number with its
standard error, `criteria` compare numbers, and `verdict` has the rules that both
share. May import `analyzers.no_wrong_turns.runs` and what lies below that package.
"""
