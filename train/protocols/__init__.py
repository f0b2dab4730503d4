"""Ways to run a training: record, resume, sweep, branch, replay, and the two-run protocol."""
