"""Ways to run a workload: record, resume, sweep, branch, replay, and run twice.

`record` (which also resumes), `sweep`, `branch`, `replay` and `two_run` are protocols, each
with a traj-train command. `chords` evaluates losses between two iterates. `rebuild` rebuilds
the model and data of a recorded run for `replay` and `chords`.

Imports the rest of `train`, and `trajstore` to record and read. Start reading with `record`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
