"""A page that compares optimizers: geometry, conditions and sharpness of recorded runs.

`traj-analyze optimizers` finds runs that differ in their optimizer and seed. `measure` reduces
every run to numbers and averages them over seeds, `statements` tests what papers say, and
`page` writes tables and figures.

Imports `no_wrong_turns`, `conditions`, `curvature`. Start reading with `measure`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
