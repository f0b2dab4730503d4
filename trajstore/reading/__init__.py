"""Read stores: open runs as lazy datasets, find targets and report damage.

Begin with `run`, which defines `open_run` and the public class `Run`. It uses
`stored_rows`, which caches chunks and reads damaged ones as NaN; `chunk_checks`, which
compares them with the root document; `anchors`, which decodes the anchors of windows; and
`epochs` and `lazy_rows`, which make datasets selectable and lazy. `target` finds the points that analyses measure against, `results` manages the stores
of their results, `verify` and `verify_results` look for damage, and `version` lets another process open the
same version of a store.

May import: `trajstore.format`, `trajstore.sketch` and `trajstore.store`; never torch or
Dask.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
