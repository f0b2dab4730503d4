"""Figures of the paper "No Wrong Turns" and tests of its statements, from recorded runs.

`runs` finds runs in a directory and chooses the runs that a comparison needs. `figures`
holds the table of figures; `by_setting`, `single_runs`, `controls` and `measurements` make
their panels from `curves`. `claims` tests the statements, and `page` writes figures and
verdicts to one page. Begin with `command`, whose two commands use all of these modules.
The package may import every other package of `analyzers`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
