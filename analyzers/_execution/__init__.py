"""Run Dask graphs: clusters, progress, and results kept next to the run."""
