"""Small networks in training, which differ in all that matters to the errors of estimates."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler


class Loop(NamedTuple):
    """A network in training."""

    model: nn.Module
    optimizer: Optimizer
    loss: Callable[[], Tensor]  # loss of the next batch
    largest_norm: float = math.inf  # gradients are clipped to this norm
    schedule: LRScheduler | None = None


def batches(*tensors: Tensor, size: int, seed: int) -> Callable[[], list[Tensor]]:
    """Return a function that draws the next random batch."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> list[Tensor]:
        chosen = torch.randint(len(tensors[0]), (size,), generator=generator)
        return [tensor[chosen] for tensor in tensors]

    return draw


def cross_entropy(model: nn.Module, draw: Callable[[], list[Tensor]]) -> Tensor:
    """Return the loss of a classifier in the next batch of inputs and labels."""
    x, y = draw()
    return F.cross_entropy(model(x), y)


def perceptron(
    seed: int,
    *,
    widths: tuple[int, ...],
    lr: float = 0.1,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    is_adam: bool = False,
) -> Loop:
    """Classify noisy labels of a random teacher by a fully connected network, by SGD or Adam."""
    generator = torch.Generator().manual_seed(17)
    inputs = torch.randn(2000, widths[0], generator=generator)
    teacher = torch.randn(widths[0], widths[-1], generator=generator)
    noise = torch.randn(2000, widths[-1], generator=generator)
    labels = (torch.tanh(inputs) @ teacher + noise).argmax(1)
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    draw = batches(inputs, labels, size=32, seed=seed)
    loss = partial(cross_entropy, model, draw)
    if is_adam:
        return Loop(model, Adam(model.parameters(), lr=lr), loss)
    optimizer = SGD(
        model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay
    )
    return Loop(model, optimizer, loss)


def digits() -> tuple[Tensor, Tensor]:
    """Return images of digits, (image, 1, 8, 8), and their labels."""
    found = load_digits()
    images = torch.tensor(found.images[:, None] / 8 - 1, dtype=torch.float32)
    return images, torch.tensor(found.target)


def cnn(seed: int, *, n_steps: int) -> Loop:
    """Classify digits by a network with BatchNorm; the learning rate decays to 0."""
    images, labels = digits()
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    draw = batches(images, labels, size=32, seed=seed)
    loss = partial(cross_entropy, model, draw)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = CosineAnnealingLR(optimizer, n_steps)
    return Loop(model, optimizer, loss, schedule=schedule)


def words(vocabulary: int, n: int, *, stay: float = 0.5) -> Tensor:
    """Return a text of random words: some follow from the word before, the others are frequent words."""
    rng = np.random.default_rng(29)
    frequency = 1 / np.arange(1, vocabulary + 1)
    drawn = rng.choice(vocabulary, n, p=frequency / frequency.sum())
    successor = rng.permutation(vocabulary)
    text = drawn.copy()
    for i in np.flatnonzero(rng.random(n) < stay):
        text[i] = successor[text[i - 1]]
    return torch.from_numpy(text)


class LanguageModel(nn.Module):
    """A transformer with causal attention, whose embedding is also its last layer."""

    def __init__(self, vocabulary: int, width: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.embedding.weight.data *= width**-0.5
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.mask = nn.Transformer.generate_square_subsequent_mask(length)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits of the next words, (batch, length, word)."""
        x = self.embedding(tokens) + self.position
        for block in self.blocks:
            x = block(x, src_mask=self.mask)
        return self.norm(x) @ self.embedding.weight.T


def transformer(seed: int, *, vocabulary: int = 300, length: int = 16) -> Loop:
    """Train a transformer with a tied embedding under AdamW."""
    text = words(vocabulary, 20_000).unfold(0, length + 1, 1)
    torch.manual_seed(seed)
    model = LanguageModel(vocabulary, 64, length)
    draw = batches(text, size=16, seed=seed)

    def loss() -> Tensor:
        (tokens,) = draw()
        logits = model(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    return Loop(model, optimizer, loss)


def large_vocabulary(seed: int, *, vocabulary: int = 20_000) -> Loop:
    """Classify bags of words by an embedding of 20,000 rows; most gradients are 0."""
    text = words(vocabulary, 60_000).unfold(0, 12, 12)
    labels = (text.sum(1) % 7) // 2
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(vocabulary, 16), nn.Flatten(), nn.Linear(192, 4))
    draw = batches(text, labels, size=32, seed=seed)
    loss = partial(cross_entropy, model, draw)
    return Loop(model, AdamW(model.parameters(), lr=2e-3), loss)


class NextWord(nn.Module):
    """An LSTM that predicts the next word."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 32)
        self.lstm = nn.LSTM(32, 64, batch_first=True)
        self.output = nn.Linear(64, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits of the next words, (batch, length, word)."""
        logits: Tensor = self.output(self.lstm(self.embedding(tokens))[0])
        return logits


def lstm(seed: int, *, vocabulary: int = 60) -> Loop:
    """Train an LSTM by SGD with clipped gradients."""
    text = words(vocabulary, 10_000).unfold(0, 17, 1)
    torch.manual_seed(seed)
    model = NextWord(vocabulary)
    draw = batches(text, size=16, seed=seed)

    def loss() -> Tensor:
        (tokens,) = draw()
        logits = model(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    return Loop(model, SGD(model.parameters(), lr=1.0), loss, largest_norm=0.25)


def heavy_tails(seed: int) -> Loop:
    """Fit targets with heavy-tailed noise, by SGD with momentum."""
    rng = np.random.default_rng(31)
    inputs = torch.tensor(rng.standard_t(3, (2000, 30)), dtype=torch.float32)
    noise = torch.tensor(rng.standard_t(2, 2000), dtype=torch.float32)
    targets = torch.sin(inputs[:, :5].sum(1)) + 0.5 * noise
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(30, 80), nn.Tanh(), nn.Linear(80, 80), nn.Tanh(), nn.Linear(80, 1)
    )
    draw = batches(inputs, targets, size=16, seed=seed)

    def loss() -> Tensor:
        x, y = draw()
        return F.mse_loss(model(x)[:, 0], y)

    return Loop(model, SGD(model.parameters(), lr=0.005, momentum=0.9), loss)


def full_batch(seed: int, *, width: int, lr: float) -> Loop:
    """Fit a Chebyshev polynomial at 20 points, by gradient descent on all of them."""
    x = torch.linspace(-1, 1, 20)[:, None]
    y = torch.from_numpy(np.polynomial.chebyshev.chebval(x.numpy(), [0] * 5 + [1]))
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1, bias=False)
    )

    def loss() -> Tensor:
        return 0.5 * F.mse_loss(model(x), y.float())

    return Loop(model, SGD(model.parameters(), lr=lr), loss)


class Characters(nn.Module):
    """A GRU that predicts the next word."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 24)
        self.gru = nn.GRU(24, 48, batch_first=True)
        self.output = nn.Linear(48, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits of the next words, (batch, length, word)."""
        logits: Tensor = self.output(self.gru(self.embedding(tokens))[0])
        return logits


def gru(seed: int, *, vocabulary: int = 80) -> Loop:
    """Train a GRU by Adam."""
    text = words(vocabulary, 10_000).unfold(0, 17, 1)
    torch.manual_seed(seed)
    model = Characters(vocabulary)
    draw = batches(text, size=16, seed=seed)

    def loss() -> Tensor:
        (tokens,) = draw()
        logits = model(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    return Loop(model, Adam(model.parameters(), lr=3e-3), loss)


class Ratings(nn.Module):
    """Predict ratings from embeddings of users and items."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.users = nn.Embedding(n, 16)
        self.items = nn.Embedding(n, 16)
        self.output = nn.Linear(32, 1)

    def forward(self, pairs: Tensor) -> Tensor:
        """Return the rating of every pair, (pair,)."""
        both = torch.cat([self.users(pairs[:, 0]), self.items(pairs[:, 1])], 1)
        rating: Tensor = self.output(both)[:, 0]
        return rating


def ratings(seed: int, *, n: int = 1500) -> Loop:
    """Fit ratings of a few frequent and many rare users and items, by Adagrad."""
    rng = np.random.default_rng(37)
    pairs = torch.tensor(rng.zipf(1.3, (20_000, 2)) % n)
    signal = torch.sin(pairs.sum(1).float())
    targets = signal + torch.tensor(rng.standard_normal(len(pairs))).float()
    torch.manual_seed(seed)
    model = Ratings(n)
    draw = batches(pairs, targets, size=64, seed=seed)

    def loss() -> Tensor:
        x, y = draw()
        return F.mse_loss(model(x), y)

    return Loop(model, Adagrad(model.parameters(), lr=0.05), loss)


def label_noise(seed: int) -> Loop:
    """Fit 40 points whose labels have new noise in every step, by gradient descent."""
    generator = torch.Generator().manual_seed(41)
    inputs = torch.randn(40, 30, generator=generator)
    targets = inputs[:, :3].sum(1)
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(30, 150), nn.ReLU(), nn.Linear(150, 100), nn.ReLU(), nn.Linear(100, 1)
    )
    noise = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        noisy = targets + 0.3 * torch.randn(len(targets), generator=noise)
        return F.mse_loss(model(inputs)[:, 0], noisy)

    return Loop(model, SGD(model.parameters(), lr=0.01), loss)


class Residual(nn.Module):
    """A convolutional network with a skip connection and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 24, 3, padding=1, bias=False)
        self.second = nn.Conv2d(24, 24, 3, padding=1, bias=False)
        self.third = nn.Conv2d(24, 48, 3, stride=2, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (24, 24, 48))
        self.output = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (batch, class)."""
        x = F.relu(self.norms[0](self.first(images)))
        x = x + F.relu(self.norms[1](self.second(x)))
        x = F.relu(self.norms[2](self.third(x)))
        logits: Tensor = self.output(x.mean((2, 3)))
        return logits


def residual(seed: int, *, n_steps: int) -> Loop:
    """Classify digits by Nesterov's method with weight decay; the rate decays to 0."""
    images, labels = digits()
    torch.manual_seed(seed)
    model = Residual()
    draw = batches(images, labels, size=32, seed=seed)
    loss = partial(cross_entropy, model, draw)
    optimizer = SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = CosineAnnealingLR(optimizer, n_steps)
    return Loop(model, optimizer, loss, schedule=schedule)


def convolutions(seed: int) -> Loop:
    """Classify digits by a convolutional network without BatchNorm, by NAdam."""
    images, labels = digits()
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(32, 48, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(192, 10),
    )
    draw = batches(images, labels, size=32, seed=seed)
    loss = partial(cross_entropy, model, draw)
    return Loop(model, NAdam(model.parameters(), lr=2e-3), loss)


class VisionTransformer(nn.Module):
    """A transformer of 16 patches of an image and a token of the class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Linear(4, width)
        self.position = nn.Parameter(0.02 * torch.randn(17, width))
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 3 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (batch, class)."""
        patches = self.patches(F.unfold(images, 2, stride=2).transpose(1, 2))
        x = torch.cat([self.token.expand(len(images), -1, -1), patches], 1)
        x = x + self.position
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.output(self.norm(x)[:, 0])
        return logits


def vision_transformer(seed: int) -> Loop:
    """Classify digits by a transformer, by AdamW."""
    images, labels = digits()
    torch.manual_seed(seed)
    model = VisionTransformer(48)
    draw = batches(images, labels, size=32, seed=seed)
    loss = partial(cross_entropy, model, draw)
    return Loop(model, AdamW(model.parameters(), lr=1e-3), loss)
