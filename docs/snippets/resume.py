"""Resume a training run and its recording from a checkpoint."""

from pathlib import Path

import torch
from torch import nn

import trajstore

EPOCHS, STEPS = 4, 15  # steps in an epoch

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.002)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
first, resume = 0, False

if Path("checkpoint.pt").exists():
    checkpoint = torch.load("checkpoint.pt", weights_only=True)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    schedule.load_state_dict(checkpoint["schedule"])
    first, resume = checkpoint["epoch"], checkpoint["recorder"]

# Make the recorder after the states are loaded: it compares the parameters with the store.
with trajstore.Recorder(
    "resumed.zarr",
    model,
    optimizer,
    steps_per_epoch=STEPS,
    total_steps=EPOCHS * STEPS,
    resume=resume,
) as recorder:
    for epoch in range(first, EPOCHS):
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(torch.randn(32, 64)).square().mean().backward()
            optimizer.step()
        schedule.step()
        if epoch + 1 < EPOCHS:
            checkpoint = {
                "epoch": epoch + 1,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "recorder": recorder.state_dict(),
            }
            torch.save(checkpoint, "checkpoint.pt")
