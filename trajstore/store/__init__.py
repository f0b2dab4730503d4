"""Read and write the bytes of a store, in a directory or in object storage.

Contents: locations (`location`), the lock of the writer (`lock`), commits that a reader
sees whole or not at all (`commit`, with the checks of `row_checks`), the run's writer
(`writer`, over `row_table`), deletion (`deletion`), the journal (`journal`),
and bounded, checked reads (`chunks`, `opening`).

May import: `trajstore.format`, Zarr and NumPy; never torch or xarray.

Begin with `commit`, then `writer` for the write path and `opening` for the read path.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
