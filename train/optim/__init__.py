"""Optimizers of the literature that torch does not have, one per file.

Each is a pure function that states the published step, and a shell that torch's hooks, and
so a recorder, can watch. Beside its ``lr``, which is a bound or a length and is left as it
was, every group of parameters has a ``step_size`` after a step: what the gradient, or the
momentum, was multiplied with. A recorder keeps both.
"""
