"""Optimizers of the literature that torch does not have, one per module.

Each module has a pure function that states the published step and an optimizer that applies
it, which torch's hooks, and so a recorder, can observe. After a step every parameter group
has two numbers that a recorder stores: ``lr``, a bound or a length that stays unchanged, and
``step_size``, the factor of the gradient or momentum in that step.

Imports torch only. Start reading with `normalized_sgd`; `gradient_steps` is shared by all.
"""
