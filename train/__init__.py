"""Training runs: models, data sets, optimizers, and ways to record them.

`loop` trains a workload under an observer (`observer`), which records it, or measures it under
the two-run protocol. `settings` holds everything that repeats a run; `cli` is the command line
traj-train. Packages: `workloads` (a model on a data set, by name), `protocols` (record, resume,
sweep, branch, replay, two runs), `curvature` (Hessian, sharpness), `data`, `models`, `optim`.

Imports `trajstore`, torch and scikit-learn, never `analyzers`. Start reading with `loop`.
"""
