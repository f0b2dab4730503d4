"""Record your own training loop."""

import torch
from torch import nn

import trajstore

images, labels = torch.randn(512, 64), torch.randint(10, (512,))
data = torch.utils.data.TensorDataset(images, labels)
loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
criterion = nn.CrossEntropyLoss()

with trajstore.Recorder(
    "run.zarr",
    model,
    optimizer,
    steps_per_epoch=len(loader),
    total_steps=5 * len(loader),  # optional: makes the last steps more precise
) as recorder:
    for _ in range(5):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            recorder.log(loss=loss)  # optional
            optimizer.step()
