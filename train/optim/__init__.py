"""Optimizers from the literature that torch does not have, one per module.

Each module has a pure function that states the published step, and an optimizer that applies
it. Torch's hooks, and therefore a recorder, can observe the optimizer. After a step, every
parameter group holds two numbers that a recorder stores: ``lr``, a bound or a length that the
step does not change, and ``step_size``, which multiplied the gradient or momentum in the step.

Imports torch only. Start reading with `normalized_sgd`; all optimizers use `gradient_steps`.
"""
