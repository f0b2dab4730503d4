"""Trainings that no constant of plans was fitted to."""

import math
from collections.abc import Callable
from functools import partial

import torch
from calibration_loops import (
    LanguageModel,
    Loop,
    batches,
    cross_entropy,
    digits,
    words,
)
from calibration_trainings import Training
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import LambdaLR


class Reader(nn.Module):
    """Two layers of LSTM that predict the next word."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 32)
        self.lstm = nn.LSTM(32, 72, num_layers=2, batch_first=True)
        self.output = nn.Linear(72, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits of the next words, (batch, length, word)."""
        logits: Tensor = self.output(self.lstm(self.embedding(tokens))[0])
        return logits


def next_word(
    model: nn.Module, text: Tensor, *, size: int, seed: int
) -> Callable[[], Tensor]:
    """Return the loss of a model of a text in the next batch."""
    draw = batches(text, size=size, seed=seed)

    def loss() -> Tensor:
        (tokens,) = draw()
        logits = model(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    return loss


def clipped_lstm(seed: int, *, vocabulary: int = 90) -> Loop:
    """Train two layers of LSTM by SGD with momentum, with clipped gradients."""
    text = words(vocabulary, 10_000, stay=0.6).unfold(0, 17, 1)
    torch.manual_seed(seed)
    model = Reader(vocabulary)
    loss = next_word(model, text, size=16, seed=seed)
    optimizer = SGD(model.parameters(), lr=0.2, momentum=0.9)
    return Loop(model, optimizer, loss, largest_norm=0.5)


class Block(nn.Module):
    """Two convolutions with BatchNorm and a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return images of the same size."""
        return F.relu(x + self.body(x))


def residual_cnn(seed: int, *, n_steps: int) -> Loop:
    """Classify digits by a residual network, by Nesterov's method; the rate decays linearly."""
    images, labels = digits()
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        Block(24),
        nn.AvgPool2d(2),
        Block(24),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )
    loss = partial(cross_entropy, model, batches(images, labels, size=64, seed=seed))
    optimizer = SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = LambdaLR(optimizer, lambda k: 1 - k / n_steps)
    return Loop(model, optimizer, loss, schedule=schedule)


def language_model(seed: int, *, n_steps: int, vocabulary: int = 500) -> Loop:
    """Train a transformer with a tied embedding under AdamW, with a linear decay to 0."""
    text = words(vocabulary, 20_000, stay=0.7).unfold(0, 13, 1)
    torch.manual_seed(seed)
    model = LanguageModel(vocabulary, 80, 12)
    loss = next_word(model, text, size=16, seed=seed)
    optimizer = AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = LambdaLR(optimizer, lambda k: 1 - k / n_steps)
    return Loop(model, optimizer, loss, schedule=schedule)


def tiny(seed: int) -> Loop:
    """Classify blobs by a perceptron of 512 parameters, by SGD."""
    generator = torch.Generator().manual_seed(43)
    centres = torch.randn(8, 12, generator=generator)
    labels = torch.randint(8, (1500,), generator=generator)
    inputs = centres[labels] + torch.randn(1500, 12, generator=generator)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 8))
    loss = partial(cross_entropy, model, batches(inputs, labels, size=32, seed=seed))
    return Loop(model, SGD(model.parameters(), lr=0.1), loss)


class Factors(nn.Module):
    """Products of the factors of rows and columns of a matrix, and their biases."""

    def __init__(self, n: int, rank: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(n, rank)
        self.columns = nn.Embedding(n, rank)
        self.biases = nn.Embedding(2 * n, 1)
        for embedding in (self.rows, self.columns, self.biases):
            nn.init.normal_(embedding.weight, std=0.3)
        self.n = n

    def forward(self, places: Tensor) -> Tensor:
        """Return the elements at some places, (place,)."""
        i, j = places.T
        product = (self.rows(i) * self.columns(j)).sum(1)
        found: Tensor = product + self.biases(torch.stack([i, j + self.n])).sum((0, 2))
        return found


def factorization(seed: int, *, n: int = 800, rank: int = 12) -> Loop:
    """Complete a matrix of low rank from noisy elements, by Adam."""
    generator = torch.Generator().manual_seed(47)
    left, right = torch.randn(2, n, 5, generator=generator)
    places = torch.randint(n, (40_000, 2), generator=generator)
    noise = torch.randn(len(places), generator=generator)
    values = (left[places[:, 0]] * right[places[:, 1]]).sum(1) + 0.5 * noise
    torch.manual_seed(seed)
    model = Factors(n, rank)
    draw = batches(places, values, size=256, seed=seed)

    def loss() -> Tensor:
        x, y = draw()
        return F.mse_loss(model(x), y)

    return Loop(model, Adam(model.parameters(), lr=0.02), loss)


def small_regression(seed: int) -> Loop:
    """Fit a smooth function by a perceptron of 5,511 parameters, by RMSprop."""
    generator = torch.Generator().manual_seed(53)
    inputs = torch.rand(3000, 8, generator=generator) * 2 - 1
    noise = torch.randn(3000, generator=generator)
    targets = torch.sin(3 * inputs[:, 0]) * inputs[:, 1] + 0.1 * noise
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(8, 68), nn.GELU(), nn.Linear(68, 68), nn.GELU(), nn.Linear(68, 3)
    )
    draw = batches(inputs, targets, size=32, seed=seed)

    def loss() -> Tensor:
        x, y = draw()
        return F.mse_loss(model(x).mean(1), y)

    return Loop(model, RMSprop(model.parameters(), lr=5e-4), loss)


def autoencoder(seed: int) -> Loop:
    """Compress images of digits by an autoencoder of 295,404 parameters, by SGD."""
    images, _ = digits()
    images = images.flatten(1)
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(64, 720),
        nn.ReLU(),
        nn.Linear(720, 140),
        nn.ReLU(),
        nn.Linear(140, 720),
        nn.ReLU(),
        nn.Linear(720, 64),
    )
    draw = batches(images, size=64, seed=seed)

    def loss() -> Tensor:
        (x,) = draw()
        return F.mse_loss(model(x), x)

    return Loop(model, SGD(model.parameters(), lr=0.2), loss)


def plain_cnn(seed: int) -> Loop:
    """Classify digits by convolutions and a wide layer, by SGD."""
    images, labels = digits()
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 20, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(20, 40, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(640, 90),
        nn.ReLU(),
        nn.Linear(90, 10),
    )
    loss = partial(cross_entropy, model, batches(images, labels, size=32, seed=seed))
    return Loop(model, SGD(model.parameters(), lr=0.1), loss)


def wide_adam(seed: int, *, n_steps: int) -> Loop:
    """Fit a smooth function by a wide perceptron, by Adam; the rate follows a cosine."""
    generator = torch.Generator().manual_seed(59)
    inputs = torch.randn(4000, 16, generator=generator)
    targets = torch.cos(2 * inputs[:, 0]) + inputs[:, 1] * inputs[:, 2]
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(16, 300), nn.SiLU(), nn.Linear(300, 400), nn.SiLU(), nn.Linear(400, 1)
    )
    draw = batches(inputs, targets, size=64, seed=seed)

    def loss() -> Tensor:
        x, y = draw()
        return F.mse_loss(model(x)[:, 0], y)

    optimizer = Adam(model.parameters(), lr=2e-3)
    schedule = LambdaLR(
        optimizer, lambda k: 0.5 * (1 + math.cos(math.pi * k / n_steps))
    )
    return Loop(model, optimizer, loss, schedule=schedule)


NEW_TRAININGS: dict[str, Training] = {
    "clipped LSTM": Training(
        start=clipped_lstm,
        cases={},
        optimizer="momentum",
        steps_per_epoch=25,
        epochs=12,
    ),
    "residual CNN": Training(
        start=partial(residual_cnn, n_steps=300),
        cases={},
        optimizer="momentum",
        rate="linear",
    ),
    "language model": Training(
        start=partial(language_model, n_steps=320),
        cases={},
        optimizer="adaptive",
        rate="linear",
        steps_per_epoch=40,
        epochs=8,
    ),
    "matrix factorization": Training(
        start=factorization,
        cases={},
        optimizer="adaptive",
        steps_per_epoch=40,
        epochs=8,
    ),
    "regression": Training(
        start=small_regression,
        cases={},
        optimizer="adaptive",
        steps_per_epoch=30,
        epochs=10,
    ),
    "autoencoder": Training(start=autoencoder, cases={}),
    "plain CNN": Training(start=plain_cnn, cases={}, steps_per_epoch=30, epochs=10),
    "wide perceptron": Training(
        start=partial(wide_adam, n_steps=320),
        cases={},
        optimizer="adaptive",
        rate="cosine",
        steps_per_epoch=40,
        epochs=8,
    ),
    "tiny perceptron": Training(start=tiny, cases={}),
}
"""Training runs by name."""
