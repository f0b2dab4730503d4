"""
Gamma, RSI, EB and the distance
===============================

The five quantities by epoch, two learning rates on the same axes, and the layers of a network.
"""

# %%
# A perceptron learns scikit-learn's digits twice, with different learning rates.

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
epochs, n = 12, 28


def make_model():
    return nn.Sequential(
        *(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 128), nn.Tanh()),
        *(nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 10)),
    )


def train(path, lr):
    torch.manual_seed(0)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    with trajstore.Recorder(
        path, model, optimizer, steps_per_epoch=n, total_steps=epochs * n
    ) as recorder:
        for _ in range(epochs):
            for batch in torch.randperm(n * 64).split(64):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
                loss.backward()
                recorder.log(loss=loss)
                optimizer.step()
    return trajstore.open_run(path)


runs = {lr: train(folder / f"lr-{lr}.zarr", lr) for lr in (0.02, 0.1)}
means = {
    lr: analyzers.epoch_means(analyzers.path_geometry(run)).compute()
    for lr, run in runs.items()
}

# %%
# All quantities of one run
# -------------------------
# Lines are means over the steps of an epoch, with the standard errors of the means. Bands reach from
# the smallest to the largest value of a step. In the shaded epoch x* is part of the path.

plots.path_geometry(means[0.02])

# %%
# Several runs on the same axes
# -----------------------------
# Functions that draw one pair of axes take ``ax=``, ``color=`` and ``label=``, and return the axes.

figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
for ax, name in zip(axes, ("gamma", "lolr", "distance"), strict=True):
    for lr, each in means.items():
        plots.epoch_means(each, name, final="drop", ax=ax, label=f"lr {lr}")
    ax.legend(frameon=False)

# %%
# Layers
# ------
# The same store has gamma of every layer. Crosses mark means that are smaller than two standard
# errors.

by_layer = analyzers.path_geometry(runs[0.02], layers=True)
plots.layer_means(analyzers.epoch_means(by_layer).compute())

# %%
# The loss along the path
# -----------------------
# On the plane of the path's principal components, and on the lines from iterates to x*.

from trajstore.evaluation import TrainingSetup, losses_on_plane, losses_towards

setup = TrainingSetup(
    model=make_model(),
    loss=nn.functional.cross_entropy,
    data=torch.utils.data.TensorDataset(images, labels),
    batch_size=599,
)
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
plane = losses_on_plane(runs[0.02], setup, size=13)
plots.losses_on_plane(plane, analyzers.path_pca(runs[0.02]).compute(), ax=left)
plots.losses_towards(losses_towards(runs[0.02], setup), ax=right)

# %%
# Panels of your own
# ------------------
# A :class:`~analyzers.plots.Panel` holds any curves of yours, and
# :func:`~analyzers.plots.draw_panels` arranges panels like the figures of the papers. Here: gamma of
# the run, and gamma of a random walk through the same optimizer, whose gradients are noise with the
# norms of the run's gradients.

from trajstore.evaluation import noise_gradients

model = make_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
with trajstore.Recorder(
    folder / "walk.zarr", model, optimizer, steps_per_epoch=n, total_steps=epochs * n
):
    for _ in noise_gradients(runs[0.02], model, optimizer):
        optimizer.step()

walk = analyzers.epoch_means(analyzers.path_geometry(folder / "walk.zarr")).compute()
epoch = walk.epoch.values[:-1]
curves = [
    plots.Curve(name, epoch, each.gamma.values[:-1], each.gamma_stderr.values[:-1])
    for name, each in {"run": means[0.02], "random walk": walk}.items()
]
panel = plots.Panel(
    title="gamma and chance", ylabel="gamma", curves=tuple(curves), needs="a run"
)
plots.draw_panels([panel], n_columns=1)
