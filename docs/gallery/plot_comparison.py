"""
Several runs: paths, distances, and the explorer
================================================

Three runs from the same start, with different learning rates: one table of means and differences,
one map of their paths, all distances, and a page to explore.
"""

# %%
# A perceptron learns scikit-learn's digits three times. Settings in ``attrs`` tell the runs apart.

import html
import subprocess
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import trajstore
from trajstore import analyzers

plots = analyzers.plots
digits = load_digits()
images = torch.tensor(digits.data / 16, dtype=torch.float32)
labels = torch.tensor(digits.target)
folder = Path(tempfile.mkdtemp())
epochs, n = 10, 28


def train(lr):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU()),
        nn.Linear(128, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with trajstore.Recorder(
        folder / f"lr-{lr}.zarr",
        model,
        optimizer,
        steps_per_epoch=n,
        total_steps=epochs * n,
        attrs={"rate": lr},
    ) as recorder:
        for _ in range(epochs):
            for batch in torch.randperm(n * 64).split(64):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
                loss.backward()
                recorder.log(loss=loss)
                optimizer.step()
    return folder / f"lr-{lr}.zarr"


runs = [train(lr) for lr in (0.05, 0.1, 0.3)]

# %%
# Means and differences
# ---------------------
# :func:`analyzers.compare` returns one dataset with the dimension ``run``.

compared = analyzers.compare(runs).compute()
plots.compare(compared)

# %%
# The map of the paths
# --------------------
# Principal components of the iterates that the stores keep. All runs begin at the circle.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
plots.path_pca(analyzers.path_pca(runs).compute(), ax=left)

# Distances between all of these iterates, within and between runs.
plots.path_distances(analyzers.path_distances(runs).compute(), ax=right)

# %%
# The explorer
# ------------
# ``traj-analyze explore`` writes one HTML file with linked views, which opens from disk. Move the
# pointer over points, zoom, and choose quantities.

command = ["traj-analyze", "explore", *map(str, runs), "--layers", "--out", "page.html"]
subprocess.run(command, cwd=folder, check=True, capture_output=True)


class Page:
    def _repr_html_(self):
        page = html.escape((folder / "page.html").read_text())
        return f'<iframe class="explorer" title="explorer" srcdoc="{page}"></iframe>'


Page()
