"""
Sharpness, smoothness, convexity, invariant layers
==================================================

Gradient descent with the full batch drives the largest eigenvalue of the Hessian up to 2 / lr. The
recording shows it, and what happens there.
"""

# %%
# A small tanh network on a part of scikit-learn's digits. :class:`trajstore.curvature.Sharpness`
# measures the largest eigenvalue every fifth step.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import trajstore
from trajstore import analyzers
from trajstore.curvature import Sharpness

plots = analyzers.plots
torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data[:300] / 16, dtype=torch.float32)
images -= images.mean(0)
targets = nn.functional.one_hot(torch.tensor(digits.target[:300])).float()
folder = Path(tempfile.mkdtemp())

model = nn.Sequential(
    *(nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 10))
)
criterion = nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=3.0)
sharpness = Sharpness(model, lambda: [criterion(model(images), targets)])

with trajstore.Recorder(
    folder / "descent.zarr", model, optimizer, steps_per_epoch=25, total_steps=500
) as recorder:
    for step in range(500):
        if step % 5 == 0:
            recorder.log(**sharpness.measure())
        optimizer.zero_grad()
        loss = criterion(model(images), targets)
        loss.backward()
        recorder.log(loss=loss)
        optimizer.step()

run = trajstore.open_run(folder / "descent.zarr")

# %%
# The edge of stability
# ---------------------
# The dotted line is the threshold 2 / lr.

edge = analyzers.edge_of_stability(run)
plots.edge_of_stability(edge)

# %%
# Smoothness
# ----------
# The change of the gradient over the change of the parameters, from recorded products alone.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.5), layout="constrained")
plots.smoothness(analyzers.smoothness(run).compute(), ax=left, label="smoothness")
plots.smoothness(edge, ax=left, label="sharpness")
left.legend(frameon=False)

# Convexity: below 0, a tangent lies above the loss at the end.
with torch.no_grad():
    at_end = float(criterion(model(images), targets))
slack = analyzers.convexity(run, reference_loss=at_end).compute()
plots.convexity(slack, ax=right, title="slack towards the end")

# %%
# Layers whose scale has no effect
# --------------------------------
# A convolution before a normalisation can be multiplied by any number. Its gradient is then
# orthogonal to it.

layers = (
    *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
    *(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()),
)
network = nn.Sequential(*layers, nn.Linear(256, 10))
optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
with trajstore.Recorder(
    folder / "norm.zarr", network, optimizer, steps_per_epoch=20
) as recorder:
    for _ in range(60):
        optimizer.zero_grad()
        batch = torch.randint(300, (64,))
        criterion(network(images[batch].view(-1, 1, 8, 8)), targets[batch]).backward()
        optimizer.step()

invariance = analyzers.scale_invariance(trajstore.open_run(folder / "norm.zarr"))
plots.scale_invariance(invariance.compute())
