"""
One recording, three views
==========================

A small convolutional network learns scikit-learn's digits once. Everything below is computed from
its recording: the path between the stored iterates, gamma of every step with its standard error,
and gamma of every layer.
"""

# %%
# Train and record
# ----------------
# The recorder hooks into the optimizer. The rest is an ordinary loop.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import trajstore
from trajstore import analyzers

torch.manual_seed(3)
digits = load_digits()
images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
labels = torch.tensor(digits.target)


def block(n_in, n_out):
    return nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU()


model = nn.Sequential(
    *(*block(1, 16), *block(16, 24), nn.MaxPool2d(2), *block(24, 32), *block(32, 32)),
    *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 10)),
)
criterion = nn.CrossEntropyLoss()
for layer in model:
    if hasattr(layer, "weight"):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
epochs, n = 16, 28
path = Path(tempfile.mkdtemp()) / "run.zarr"

# Epochs are short here and would share anchors; every epoch gets one of its own.
options = {"steps_per_epoch": n, "total_steps": epochs * n, "reference_every": n}
with trajstore.Recorder(path, model, optimizer, **options) as recorder:
    for _ in range(epochs):
        for batch in torch.randperm(n * 64).split(64):
            optimizer.zero_grad()
            loss = criterion(model(images[batch]), labels[batch])
            loss.backward()
            recorder.log(loss=loss)
            optimizer.step()

# %%
# Gamma of steps, of epochs and of layers
# ---------------------------------------
# The target is the last iterate, which was not known while the gradients were recorded.

run = trajstore.open_run(path)
geometry = analyzers.path_geometry(run).compute()
means = analyzers.epoch_means(geometry)
layers = analyzers.epoch_means(analyzers.path_geometry(run, layers=True)).compute()
walk = analyzers.random_walk_gamma(run)

# %%
# The path and the loss around it
# -------------------------------
# The stored iterates at the starts of epochs span a space of few dimensions. Its two first
# principal components make the plane of the map. The loss is evaluated at points of the plane.

ends = [*range(epochs), "final"]
iterates = [trajstore.parameters_at(run, end) for end in ends]
names = list(iterates[0])
stacked = np.stack([np.concatenate([p[k].ravel() for k in names]) for p in iterates])
centre = stacked.mean(0)
_, sizes, axes = np.linalg.svd(stacked - centre, full_matrices=False)
points = (stacked - centre) @ axes[:2].T
explained = sizes[:2] ** 2 / np.sum(sizes**2)

low, high = points.min(0) - 0.9, points.max(0) + 0.9
grid = [np.linspace(low[i], high[i], 22) for i in range(2)]
some = slice(0, 300)


def loss_at(vector):
    flat = torch.tensor(vector, dtype=torch.float32)
    nn.utils.vector_to_parameters(flat, model.parameters())
    with torch.no_grad():
        return float(criterion(model(images[some]), labels[some]))


surface = np.array(
    [[loss_at(centre + [a, b] @ axes[:2]) for a in grid[0]] for b in grid[1]]
)

# %%
# Draw
# ----

figure, (left, middle, right) = plt.subplots(
    1, 3, figsize=(13, 4), layout="constrained", width_ratios=[1.05, 1.3, 1]
)

levels = np.geomspace(surface.min(), surface.max(), 24)
left.contourf(*grid, surface, levels, norm="log", cmap="Blues", alpha=0.9)
left.contour(*grid, surface, levels, colors="white", linewidths=0.4)
left.plot(*points.T, color="black", linewidth=1.2)
dots = left.scatter(
    *points[:-1].T, c=means.gamma, cmap="viridis", s=70, edgecolor="white", zorder=3
)
left.plot(
    *points[-1], "*", color="gold", markeredgecolor="black", markersize=18, zorder=4
)
left.annotate(r"$x^*$", points[-1], (10, 6), textcoords="offset points", fontsize=14)
bar = figure.colorbar(dots, ax=left, shrink=0.85)
bar.ax.set_title(r"$\gamma$", fontsize="medium")
left.set(
    title=r"the path, on the loss; dots: $\gamma$ of epochs",
    xlabel=f"first component, {explained[0]:.0%} of the path",
    ylabel=f"second component, {explained[1]:.0%}",
)

step = geometry.step[:-n]
shown = geometry.isel(step=slice(0, -n))
middle.errorbar(
    step,
    shown.gamma,
    shown.gamma_stderr,
    fmt=".",
    color="#0072B2",
    alpha=0.45,
    markersize=4,
    elinewidth=0.8,
    label="one step, with its standard error",
)
middle.plot(
    (means.epoch[:-1] + 0.5) * n,
    means.gamma[:-1],
    "o-",
    color="#E69F00",
    label="mean of an epoch",
)
middle.plot(
    (means.epoch[:-1] + 0.5) * n,
    walk.groupby("epoch").mean()[:-1],
    "--",
    color="black",
    label="a random walk with these steps",
)
middle.axhline(0, color="black", linewidth=0.5)
middle.legend(frameon=False)
middle.set_ylim(-0.05, 0.5)
middle.set(title=r"$\gamma = \cos(g_k,\ x_k - x^*)$", xlabel="step", ylabel=r"$\gamma$")

weights = [str(name) for name in layers.layer.values if str(name).endswith("weight")]
picture = right.pcolormesh(
    layers.epoch[:-1],
    range(len(weights)),
    layers.gamma.sel(layer=weights).transpose("layer", "epoch")[:, :-1],
    cmap="viridis",
)
right.set_yticks(range(len(weights)), weights)
right.invert_yaxis()
right.set(title=r"$\gamma$ of every layer", xlabel="epoch", xticks=range(0, 15, 2))
bar = figure.colorbar(picture, ax=right, shrink=0.85)
bar.ax.set_title(r"$\gamma$", fontsize="medium")
