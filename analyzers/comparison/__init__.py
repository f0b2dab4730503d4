"""Compare runs with each other, and the iterates of a run among themselves.

`path_pca` maps the stored iterates of one or several runs on their principal components. This
package may import `analyzers.geometry`, `analyzers._execution` and `analyzers._engine`.

`run_list` names runs and checks that they have one architecture, `stored_iterates` lists and
reads whole iterates, and `gram` computes their inner products in Dask tasks.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
