"""Run Dask graphs, show progress, and store results next to the run.

This package may import `trajstore`, Dask and `distributed`, but no other package of
`analyzers`; it does not depend on any analysis. Start with `progress`, which computes
tasks on threads or on the Dask client of the process. `cluster` starts or joins a cluster,
and `results` computes a dataset and writes it to the store of results.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
