"""Training runs: models, data sets, optimizers, and ways to record them.

`loop` trains a workload under an observer (`observer`), which records the run or measures it
with the two-run protocol. `settings` holds everything that is needed to repeat a run; `cli` is
the traj-train command line. The packages are `workloads` (models on data sets, by name),
`protocols` (record, resume, sweep, branch, replay, run twice), `data` and `models`.

Nothing here is meant to be imported by users, whose own ``train.py`` would hide this package.
Imports `trajstore`, torch and scikit-learn, never `analyzers`. Start reading with `loop`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
