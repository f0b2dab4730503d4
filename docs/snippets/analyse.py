"""Analyse a recorded run, in another process or on another machine."""

import trajstore
from trajstore import analyzers

run = trajstore.open_run("run.zarr")  # also during training
geometry = analyzers.path_geometry(run, reference="final")  # lazy
means = analyzers.epoch_means(geometry).compute()

print(run.steps.loss.groupby("epoch").mean().values)
print(means[["gamma", "gamma_stderr", "distance"]].to_dataframe())
analyzers.plots.path_geometry(means).savefig("geometry.png")

start = analyzers.path_geometry(run, reference=0)  # the start of epoch 0
by_layer = analyzers.path_geometry(run, layers=True)  # results by layer
