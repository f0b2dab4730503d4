"""Workloads: a model, a data set, a loss and the settings to train them with.

`catalogue` lists all workloads by name; `definition` and `tasks` define what a workload is.
Every other module holds workloads of one source: our own (`digits`, `english`, `deep_linear`)
or those of a paper (`no_wrong_turns`, `counter_examples`, `alpha_beta`, `half_space`).

Imports `train.data`, `train.models`, `train.settings`. Start reading with `definition`.
"""
