"""Test the alpha-beta condition along the path of your own training loop."""

import numpy as np
import torch
from torch import nn

import trajstore
from trajstore import analyzers

images, labels = torch.randn(512, 64), torch.randint(10, (512,))
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
batch_size = 32

with trajstore.Recorder("pairs.zarr", model, optimizer, samples=batch_size) as recorder:
    for _ in range(10):
        recorder.start_epoch()
        for indices in torch.randperm(512).split(batch_size):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[indices]), labels[indices])
            loss.backward()
            recorder.log(loss=loss)
            recorder.log_samples(indices)
            optimizer.step()

run = trajstore.open_run("pairs.zarr")
last = trajstore.parameters_at(run, "final")  # or the parameters at another point
state = {name: torch.from_numpy(values) for name, values in last.items()}
model.load_state_dict(state, strict=False)
with torch.no_grad():
    per_example = nn.functional.cross_entropy(model(images), labels, reduction="none")
at_end = per_example.numpy()[run.samples.values].mean(axis=1)

compared = analyzers.alpha_beta(run, reference_losses=at_end)
pairs = analyzers.feasible_set(compared)
print(f"alpha {float(pairs.best_alpha):.3g}, beta {float(pairs.best_beta):.3g}")
bounds = [analyzers.feasible_set(compared, n_stderr=n) for n in (-1, 1)]
lower = analyzers.smallest_beta(pairs, np.linspace(0.1, 2, 20))
grid = analyzers.margin(compared, alpha=[0.5, 1, 2], beta=[0, 0.2, 0.4])
