"""Run Dask graphs, show progress, and store results next to the run.

This package may import `trajstore`, Dask and `distributed`, but nothing else of
`analyzers`; it knows no analysis. Begin reading in `progress`, which computes tasks on
threads or on the Dask client of the process; `cluster` starts or joins a cluster, and
`results` computes a dataset into the store of results.
"""
