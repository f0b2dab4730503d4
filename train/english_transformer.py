"""A small transformer language model on the text that Python carries, Adam."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from train.data.english import VOCABULARY, english
from train.models.transformer import LanguageModel
from train.observer import Observer, Track


@dataclass(frozen=True, slots=True, kw_only=True)
class EnglishTransformer:
    """A transformer language model on English text; Adam.

    Attributes
    ----------
    epochs : int
        Passes over the text.
    batch_size : int
        Sequences in a step; an incomplete last batch is dropped.
    context : int
        Tokens in a sequence.
    lr : float
        Learning rate.
    seed : int
        Fixes initial parameters and the order of the sequences.
    """

    epochs: int = 5
    batch_size: int = 64
    context: int = 64
    lr: float = 1e-3
    seed: int = 0

    def train(self, observe: Observer, track: Track = iter) -> nn.Module:
        """Train under observation and return the model."""
        torch.manual_seed(self.seed)
        model = LanguageModel(VOCABULARY, self.context, dim=128, n_layers=4, n_heads=4)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        loader = DataLoader(
            english(self.context), self.batch_size, shuffle=True, drop_last=True
        )
        n = len(loader)
        with observe(
            model, optimizer, steps_per_epoch=n, total_steps=n * self.epochs
        ) as recorder:
            for _ in track(range(self.epochs)):
                for tokens, targets in loader:
                    optimizer.zero_grad()
                    logits = model(tokens)
                    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
                    loss.backward()
                    recorder.log(loss=loss)
                    optimizer.step()
        return model
