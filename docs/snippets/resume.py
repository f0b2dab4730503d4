"""Resume a training run and its recording from a checkpoint."""

from pathlib import Path

import torch
from torch import nn

import trajstore

EPOCHS, BATCH = 4, 32
CHECKPOINT = Path("checkpoint.pt")

torch.manual_seed(0)
images, labels = torch.randn(480, 64), torch.randint(10, (480,))
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.002)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
first, resume = 0, False

if CHECKPOINT.exists():
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    schedule.load_state_dict(checkpoint["schedule"])
    torch.set_rng_state(checkpoint["random"])  # the order of the examples, dropout
    first, resume = checkpoint["epoch"], checkpoint["recorder"]

# Make the recorder after the states are loaded: it compares the parameters with the store.
with trajstore.Recorder(
    "resumed.zarr",
    model,
    optimizer,
    steps_per_epoch=len(images) // BATCH,
    total_steps=EPOCHS * len(images) // BATCH,
    resume=resume,
    overwrite=not resume,  # what a run left that was killed before its first checkpoint
) as recorder:
    for epoch in range(first, EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
        schedule.step()
        if epoch + 1 < EPOCHS:
            checkpoint = {
                "epoch": epoch + 1,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "random": torch.get_rng_state(),
                "recorder": recorder.state_dict(),
            }
            # A process killed while it saves keeps the checkpoint before.
            torch.save(checkpoint, "checkpoint.new")
            Path("checkpoint.new").replace(CHECKPOINT)
