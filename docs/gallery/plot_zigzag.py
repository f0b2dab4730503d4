"""
Zigzag
======

Adjacent gradients that point against each other: where a run zigzags, in which layers, and whether
smaller steps make the path smooth.
"""

# %%
# Gradient descent with the full batch and a large learning rate, on scikit-learn's digits. The run
# leaves a checkpoint after epoch 95, from which a branch continues with smaller steps. These are
# commands in a terminal; a program of yours works as well.

import subprocess
import tempfile
from pathlib import Path

import trajstore
from trajstore import analyzers

plots = analyzers.plots
folder = Path(tempfile.mkdtemp())


def terminal(command):
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)


large = "--batch-size 1437 --lr 0.5 --epochs 130 --branch-at 95"
terminal(f"traj-train run digits-mlp {large} --out run.zarr")
terminal("traj-train branch run.zarr --at-epoch 95 --lr-scale 0.5 --epochs 60")
run = trajstore.open_run(folder / "run.zarr")

# %%
# The run
# -------
# The cosine of adjacent gradients is exact. A step zigzags if the median of the cosines around it is
# below -0.5.

segments = analyzers.zigzag_segments(run)
plots.zigzag(segments, analyzers.lag_curve(run))

# %%
# Parts of this figure
# --------------------
# Each pair of axes is a function of its own.

import matplotlib.pyplot as plt

figure, axes = plt.subplots(2, 2, figsize=(11, 6), layout="constrained")
plots.zigzag_segments(segments, ax=axes[0, 0])
plots.segment_losses(segments, ax=axes[0, 1])
plots.segment_shares(segments, ax=axes[1, 0])
plots.lag_curve(analyzers.lag_curve(run), ax=axes[1, 1])

# %%
# Layers
# ------

plots.zigzag_layers(analyzers.zigzag_layers(run))

# %%
# A smaller scale
# ---------------
# From the same parameters, half the learning rate.

branches = sorted(folder.glob("run.branches/*.zarr"))
compared = analyzers.compare_branches(run, [trajstore.open_run(b) for b in branches])
plots.compare_branches(compared)
