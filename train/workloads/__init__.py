"""Workloads: a model, a data set, a loss and the settings to train them with.

`catalogue` has all of them by name. Every other module defines the workloads of one source:
our own (`digits`, `english`, `deep_linear`) or a paper's (`no_wrong_turns`,
`counter_examples`, `alpha_beta`, `half_space`).

Imports `train.data`, `train.models`, `train.settings`. Start reading with `definition`.
"""
