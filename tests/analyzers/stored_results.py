"""Results that commands store next to a run."""

from pathlib import Path

import xarray as xr


def stored(store: Path, group: str) -> xr.Dataset:
    results = store.with_suffix(".analysis.zarr")
    found: xr.Dataset = xr.open_zarr(
        results, group=group, consolidated=False, chunks=None
    )
    return found.load()
