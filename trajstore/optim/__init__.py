"""Optimizers from the literature that torch does not have, one per module.

Each module has a pure function that states the published step, and an optimizer that applies
it. Torch's hooks, and therefore a recorder, can observe the optimizer. After a step, every
parameter group holds two numbers that a recorder stores. ``lr``, which a step does not
change, is the largest step size or, in `NormalizedSGD`, the length of a step; ``step_size`` is
the factor that multiplied the gradient or momentum in that step.

Imports torch only. Start reading with `normalized_sgd`; all optimizers use `gradient_steps`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
