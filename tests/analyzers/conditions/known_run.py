"""Small recorded runs with conditions computed from the true gradients."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

import analyzers
from trajstore import Run, open_run

N_EXAMPLES, BATCH, EPOCHS = 40, 2, 4
PER_EPOCH = N_EXAMPLES // BATCH
N_STEPS = EPOCHS * PER_EPOCH


class KnownRun(NamedTuple):
    """A recorded run, with the terms of its conditions computed during training."""

    run: Run
    product: Any
    loss: Any
    reference_loss: Any
    full: Any

    def compared(self, **options: Any) -> xr.Dataset:
        """Return the loaded result of `analyzers.alpha_beta`."""
        losses = self.reference_loss
        return analyzers.alpha_beta(
            self.run, reference_losses=losses, **options
        ).compute()

    def margins(self, alpha: float, beta: float) -> Any:
        """Return T_k of every step, float64 (step,)."""
        excess = self.loss - self.reference_loss
        return self.product - alpha * excess + beta * self.loss


def train(path: Path, *, seed: int = 0, **options: Any) -> KnownRun:
    """Train a small net on noisy examples, and record it."""
    import torch
    from torch import nn

    from trajstore import Recorder

    torch.manual_seed(seed)
    inputs = torch.randn(N_EXAMPLES, 6)
    targets = inputs[:, :2].sin() + torch.randn(N_EXAMPLES, 2)
    model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    gradients, iterates, batches, losses = [], [], [], []
    full: list[tuple[Any, Any, float]] = []

    def loss_of(indices: Any) -> Any:
        return (model(inputs[indices]) - targets[indices]).square().mean()

    def flat(tensors: Any) -> Any:
        return torch.cat([t.detach().flatten() for t in tensors]).double().numpy()

    def gradient() -> Any:
        return flat([p.grad for p in model.parameters()])

    options = {"exact": True, "samples": BATCH, "steps_per_epoch": PER_EPOCH} | options
    with Recorder(path, model, optimizer, **options) as recorder:
        for _ in range(EPOCHS):
            optimizer.zero_grad()
            loss = loss_of(slice(None))
            loss.backward()
            recorder.measure("full_batch", loss=loss)
            full.append((gradient(), flat(model.parameters()), loss.item()))
            for indices in torch.randperm(N_EXAMPLES).split(BATCH):
                optimizer.zero_grad()
                loss = loss_of(indices)
                loss.backward()
                recorder.log(loss=loss)
                recorder.log_samples(indices)
                gradients.append(gradient())
                iterates.append(flat(model.parameters()))
                batches.append(indices)
                losses.append(loss.item())
                optimizer.step()
    end = flat(model.parameters())
    with torch.no_grad():
        at_end = np.array([loss_of(indices).item() for indices in batches])
        full_at_end = loss_of(slice(None)).item()
    to_end = np.array(iterates) - end
    measured = {
        "product": np.array([g @ (x - end) for g, x, _ in full]),
        "cosine": np.array(
            [
                g @ (x - end) / np.linalg.norm(g) / np.linalg.norm(x - end)
                for g, x, _ in full
            ]
        ),
        "grad_sq": np.array([g @ g for g, _, _ in full]),
        "loss": np.array([loss for _, _, loss in full]),
        "at_end": full_at_end,
    }
    return KnownRun(
        open_run(path),
        (np.array(gradients) * to_end).sum(1),
        np.array(losses),
        at_end,
        measured,
    )
