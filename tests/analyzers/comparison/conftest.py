"""Runs that start at one point, differ in length and settings, and are kept in float64."""

from collections.abc import Sequence

import pytest

from tests.analyzers.geometry.seeded import FOUR, Seeded, train


@pytest.fixture(scope="session")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Seeded]:
    """Return two trainings that four recorders each observe, whose rates differ a little."""
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("trainings")
    return [
        train(
            folder / name,
            lambda model, lr=lr: torch.optim.AdamW(model.parameters(), lr=lr),  # type: ignore[misc]
            n_steps=n_steps,
            attrs={"training": {"lr": lr, "seed": 1}, "note": {"text": name}},
            **FOUR,
        )
        for name, lr, n_steps in (("first", 0.01, 64), ("second", 0.011, 96))
    ]
