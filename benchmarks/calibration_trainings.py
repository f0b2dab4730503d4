"""Trainings of ``calibration.py``: small networks that differ in all that matters to errors."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from trajstore.planning.errors import Rate
from trajstore.planning.measured import Optimizer as Kind

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Loop(NamedTuple):
    """A network in training."""

    model: nn.Module
    optimizer: Optimizer
    loss: Callable[[], Tensor]  # loss of the next batch
    largest_norm: float = math.inf  # gradients are clipped to this norm
    schedule: LRScheduler | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way to record and to analyse a training run."""

    recorder: Mapping[str, Any] = field(default_factory=dict)  # options
    reference: str = "final"  # or "snapshot", "epoch", "average", "another run"
    weight_decay: float = 0.0  # of the geometry
    layers: bool = False  # compare layers, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A training run, and the ways to record and to analyse it."""

    start: Callable[[int], Loop]  # takes a seed
    cases: Mapping[str, Case]
    steps_per_epoch: int = 20
    epochs: int = 15
    resume_at: int | None = None  # step at which all recordings are resumed
    optimizer: Kind = "sgd"
    rate: Rate = "constant"

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps."""
        return self.steps_per_epoch * self.epochs


def batches(*tensors: Tensor, size: int, seed: int) -> Callable[[], list[Tensor]]:
    """Return a function that draws the next random batch."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> list[Tensor]:
        chosen = torch.randint(len(tensors[0]), (size,), generator=generator)
        return [tensor[chosen] for tensor in tensors]

    return draw


def perceptron(
    seed: int,
    *,
    widths: tuple[int, ...],
    lr: float = 0.1,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> Loop:
    """Classify noisy labels of a random teacher by a fully connected network."""
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

    def loss() -> Tensor:
        x, y = draw()
        return F.cross_entropy(model(x), y)

    optimizer = SGD(
        model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay
    )
    return Loop(model, optimizer, loss)


def cnn(seed: int, *, n_steps: int) -> Loop:
    """Classify digits by a network with BatchNorm; the learning rate decays to 0."""
    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 8 - 1, dtype=torch.float32)
    labels = torch.tensor(digits.target)
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

    def loss() -> Tensor:
        x, y = draw()
        return F.cross_entropy(model(x), y)

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

    def loss() -> Tensor:
        x, y = draw()
        return F.cross_entropy(model(x), y)

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


def _bits(*exponents: int) -> dict[str, Case]:
    """Return cases with these numbers of signs, as exponents of 2."""
    return {
        f"2^{exponent} signs": Case(recorder={"sketch_bits": 1 << exponent})
        for exponent in exponents
    }


def _mlp(hidden: int) -> Callable[[int], Loop]:
    return partial(perceptron, widths=(20, hidden, hidden, 5))


DEFAULT = {"": Case(layers=True)}

TRAININGS: dict[str, Training] = {
    "mlp579": Training(
        start=partial(perceptron, widths=(8, 48, 3)), cases=DEFAULT | _bits(12)
    ),
    "mlp5k": Training(start=_mlp(58), cases=DEFAULT | _bits(17, 20)),
    "mlp13k": Training(start=_mlp(100), cases=DEFAULT | _bits(17, 18, 20)),
    "mlp82k": Training(start=_mlp(273), cases=DEFAULT | _bits(18, 20)),
    "mlp300k": Training(start=_mlp(535), cases=DEFAULT | _bits(17, 20)),
    "cnn": Training(
        start=partial(cnn, n_steps=300),
        cases=DEFAULT | {"length not given": Case(recorder={"total_steps": None})},
        optimizer="momentum",
        rate="cosine",
    ),
    "transformer": Training(
        start=transformer,
        cases=DEFAULT | {"weight decay 0.05": Case(weight_decay=0.05)},
        optimizer="adaptive",
        steps_per_epoch=100,
        epochs=6,
    ),
    "vocabulary": Training(
        start=large_vocabulary, cases=DEFAULT, epochs=12, optimizer="adaptive"
    ),
    "lstm": Training(start=lstm, cases=DEFAULT, steps_per_epoch=25, epochs=12),
    "heavy": Training(start=heavy_tails, cases=DEFAULT, optimizer="momentum"),
    "decay": Training(
        start=partial(
            perceptron,
            widths=(20, 100, 100, 5),
            lr=0.02,
            momentum=0.9,
            weight_decay=0.01,
        ),
        cases={
            f"weight decay {decay:g}": Case(weight_decay=decay)
            for decay in (0.0, 0.01, 0.5, 5.0)
        },
        optimizer="momentum",
    ),
    "references": Training(
        start=partial(perceptron, widths=(20, 58, 58, 5), lr=0.02, momentum=0.9),
        cases={
            name: Case(reference=name)
            for name in ("snapshot", "epoch", "average", "another run")
        },
        optimizer="momentum",
    ),
    "resumed": Training(start=_mlp(100), cases=DEFAULT, resume_at=133),
    "descent90": Training(
        start=partial(full_batch, width=30, lr=0.1),
        cases=DEFAULT,
        steps_per_epoch=100,
        epochs=12,
    ),
    "descent1k": Training(
        start=partial(full_batch, width=333, lr=0.01),
        cases=DEFAULT
        | {"windows of 5 epochs": Case(recorder={"reference_every": 500})},
        steps_per_epoch=100,
        epochs=12,
    ),
    "descent10k": Training(
        start=partial(full_batch, width=3333, lr=0.001),
        cases=DEFAULT,
        steps_per_epoch=50,
        epochs=12,
    ),
}
"""Training runs by name."""
