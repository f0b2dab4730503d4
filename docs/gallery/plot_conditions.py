"""
Alpha-beta, aiming and Polyak-Lojasiewicz
=========================================

For which constants do published conditions hold along the path of a network?
"""

# %%
# A perceptron learns scikit-learn's digits. The recorder keeps the indices of every batch, because
# the alpha-beta condition needs the losses of the same batches at the end.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import trajstore
from trajstore import analyzers

plots = analyzers.plots
torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data / 16, dtype=torch.float32)
labels = torch.tensor(digits.target)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
path = Path(tempfile.mkdtemp()) / "run.zarr"

with trajstore.Recorder(
    path, model, optimizer, samples=64, total_steps=280
) as recorder:
    for _ in range(10):
        recorder.start_epoch()
        for batch in torch.randperm(28 * 64).split(64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            recorder.log(loss=loss)
            recorder.log_samples(batch)
            optimizer.step()

run = trajstore.open_run(path)
with torch.no_grad():  # the model still has the last parameters
    losses = nn.functional.cross_entropy(model(images), labels, reduction="none")
at_end = losses.numpy()[run.samples.values].mean(axis=1)

# %%
# The feasible pairs
# ------------------
# The condition holds in the blue area. Its boundary is computed exactly, and once more with all
# inner products one standard error smaller and larger.

compared = analyzers.alpha_beta(run, reference_losses=at_end).compute()
feasible = analyzers.feasible_set(compared)
alphas = np.linspace(0.05, 3, 100)
margins = analyzers.margin(compared, alpha=alphas, beta=np.linspace(0, 2, 100))
boundaries = [
    analyzers.smallest_beta(analyzers.feasible_set(compared, n_stderr=n), alphas)
    for n in (-1, 0, 1)
]
plots.alpha_beta([compared], margins, feasible, boundaries)

# %%
# Parts of this figure
# --------------------

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
plots.feasible_set(margins, feasible, boundaries, ax=left)
plots.condition_of_steps([compared], feasible, ax=right)

# %%
# Aiming
# ------
# The cosine of the gradient and x - x*, and theta, their product over the loss.

plots.aiming(analyzers.aiming(run).compute())

# %%
# Polyak-Lojasiewicz
# ------------------
# The largest constant mu that the gradients of an epoch allow, if the smallest loss is 0.

plots.polyak_lojasiewicz(analyzers.polyak_lojasiewicz(run, reference_loss=0.0))
