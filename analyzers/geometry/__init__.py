"""Geometry of a training path relative to a target x*: RSI, EB, gamma and the distance.

This package may import `analyzers._engine`, `analyzers._execution` and
`analyzers._reporting`, but no other topic. The other topics may import this package.

Start with `path_geometry`, which builds the lazy result. `stored` computes the result
chunk by chunk into a store next to the run, and `epoch_means` averages it over epochs.
`theory` derives consequences for SGD, and `null` computes gamma of a random walk for
comparison. `average_of_epochs` makes targets, `distance_travelled` measures the length of
the path, and `losses` provides losses and products for conditions on losses. `plots` and
`command` show the results.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
