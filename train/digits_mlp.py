"""A fully connected network on the digits, plain SGD."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from train.data.digits import digits
from train.models.mlp import mlp
from train.observer import Observer, Track


@dataclass(frozen=True, slots=True, kw_only=True)
class DigitsMLP:
    """A fully connected network on digits; plain SGD.

    Attributes
    ----------
    epochs : int
        Passes over the 1437 training images.
    batch_size : int
        Images in a step; an incomplete last batch is dropped.
    lr : float
        Learning rate.
    seed : int
        Fixes initial parameters and the order of the images.
    """

    epochs: int = 25
    batch_size: int = 64
    lr: float = 0.05
    seed: int = 0

    def train(self, observe: Observer, track: Track = iter) -> nn.Module:
        """Train under observation and return the model."""
        torch.manual_seed(self.seed)
        model = mlp([64, 512, 512, 10])
        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr)
        images, _ = digits()
        loader = DataLoader(images, self.batch_size, shuffle=True, drop_last=True)
        n = len(loader)
        with observe(
            model, optimizer, steps_per_epoch=n, total_steps=n * self.epochs
        ) as recorder:
            for _ in track(range(self.epochs)):
                for inputs, labels in loader:
                    optimizer.zero_grad()
                    logits = model(inputs)
                    loss = F.cross_entropy(logits, labels)
                    loss.backward()
                    accuracy = (logits.argmax(1) == labels).float().mean()
                    recorder.log(loss=loss, accuracy=accuracy)
                    optimizer.step()
        return model
