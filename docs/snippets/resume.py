"""Resume a training run and its recording from a checkpoint."""

from pathlib import Path

import torch
from torch import nn

import trajstore

STEPS, SAVE_EVERY = 60, 20

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
start, resume = 0, False

if Path("checkpoint.pt").exists():
    checkpoint = torch.load("checkpoint.pt", weights_only=True)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    start, resume = checkpoint["step"], checkpoint["recorder"]

with trajstore.Recorder(
    "resumed.zarr", model, optimizer, steps_per_epoch=20, resume=resume
) as recorder:
    for step in range(start, STEPS):
        if step > start and step % SAVE_EVERY == 0:
            checkpoint = {
                "step": step,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "recorder": recorder.state_dict(),
            }
            torch.save(checkpoint, "checkpoint.pt")
        optimizer.zero_grad()
        model(torch.randn(32, 64)).square().mean().backward()
        optimizer.step()
