"""Ways to run a workload: record, resume, sweep, branch, replay, and two runs.

Each module is one protocol, which a command of traj-train calls: `record` (also resumes),
`sweep`, `branch`, `replay`, `two_run`. `rebuild` rebuilds model and data from a store, for
`replay` and `chords`.

Imports the rest of `train`, and `trajstore` to record and to read. Start with `record`.
"""
