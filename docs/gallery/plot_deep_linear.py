"""
Deep linear networks
====================

Networks without activations learn one singular mode of the data after another. Their training is
known in closed form, which the recorded weights can be compared with.
"""

# %%
# The command records a network of three layers, with all iterates in full.

import subprocess
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import trajstore
from trajstore import analyzers

plots = analyzers.plots
folder = Path(tempfile.mkdtemp())
command = "traj-train run deep-linear-3 --exact --out run.zarr"
subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
modes = analyzers.linear_modes(trajstore.open_run(folder / "run.zarr"))

# %%
# Everything
# ----------
# Lines are recorded, dashes are the closed form.

plots.linear_modes(modes)

# %%
# Modes and their errors
# ----------------------

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.5), layout="constrained")
plots.mode_trajectories(modes, ax=left)
plots.mode_errors(modes, ax=right)
