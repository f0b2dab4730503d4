"""Trainings of ``calibration.py``, and the ways to record and to analyse them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

from calibration_loops import (
    Loop,
    cnn,
    convolutions,
    full_batch,
    gru,
    heavy_tails,
    label_noise,
    large_vocabulary,
    lstm,
    perceptron,
    ratings,
    residual,
    transformer,
    vision_transformer,
)

from trajstore.planning.errors import Rate
from trajstore.planning.measured import Optimizer as Kind

NOTHING: Mapping[str, Any] = MappingProxyType({})


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


def _bits(*exponents: int) -> dict[str, Case]:
    """Return cases with these numbers of signs, as exponents of 2."""
    return {
        f"2^{exponent} signs": Case(recorder={"sketch_bits": 1 << exponent})
        for exponent in exponents
    }


def _mlp(hidden: int) -> Callable[[int], Loop]:
    return partial(perceptron, widths=(20, hidden, hidden, 5))


_momentum = partial(perceptron, widths=(20, 96, 80, 8), lr=0.05, momentum=0.9)

DEFAULT = {"": Case(layers=True)}

TRAININGS: dict[str, Training] = {
    "mlp579": Training(
        start=partial(perceptron, widths=(8, 48, 3)), cases=DEFAULT | _bits(12)
    ),
    "mlp5k": Training(start=_mlp(58), cases=DEFAULT | _bits(17, 20)),
    "mlp13k": Training(start=_mlp(100), cases=DEFAULT | _bits(17, 18, 20)),
    "mlp82k": Training(start=_mlp(273), cases=DEFAULT | _bits(18, 20)),
    "mlp300k": Training(
        start=_mlp(535), cases=DEFAULT | _bits(17, 20), steps_per_epoch=15, epochs=8
    ),
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
    "gru": Training(
        start=gru, cases=DEFAULT, optimizer="adaptive", steps_per_epoch=40, epochs=8
    ),
    "ratings": Training(
        start=ratings, cases=DEFAULT, optimizer="adaptive", steps_per_epoch=40, epochs=8
    ),
    "mlp86k, Adam": Training(
        start=partial(perceptron, widths=(20, 280, 280, 5), lr=1e-3, is_adam=True),
        cases=DEFAULT,
        optimizer="adaptive",
        steps_per_epoch=40,
        epochs=8,
    ),
    "convolutions, NAdam": Training(
        start=convolutions,
        cases=DEFAULT,
        optimizer="adaptive",
        steps_per_epoch=40,
        epochs=8,
    ),
    "vision transformer": Training(
        start=vision_transformer,
        cases=DEFAULT,
        optimizer="adaptive",
        steps_per_epoch=50,
        epochs=8,
    ),
    "mlp1500": Training(
        start=partial(perceptron, widths=(12, 32, 28, 4)),
        cases=DEFAULT,
        steps_per_epoch=20,
    ),
    "label noise": Training(
        start=label_noise, cases=DEFAULT, steps_per_epoch=25, epochs=12
    ),
    "residual": Training(
        start=partial(residual, n_steps=320),
        cases=DEFAULT,
        optimizer="momentum",
        rate="cosine",
        steps_per_epoch=40,
        epochs=8,
    ),
    "momentum": Training(
        start=_momentum,
        cases=DEFAULT,
        optimizer="momentum",
        steps_per_epoch=60,
        epochs=6,
    ),
    "short epochs": Training(
        start=_momentum,
        cases=DEFAULT,
        optimizer="momentum",
        steps_per_epoch=5,
        epochs=40,
    ),
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
