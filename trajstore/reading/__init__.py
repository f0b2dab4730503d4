"""Open a store and read it as xarray datasets."""
