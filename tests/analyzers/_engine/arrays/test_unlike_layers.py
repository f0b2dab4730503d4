"""Test the errors of products of layers whose cosines differ from those of the others."""

from typing import NamedTuple

import numpy as np
import pytest

from analyzers._engine.arrays.displacement_product import (
    ProbedVectors,
    displacement_product,
    layer_products,
)
from analyzers._engine.arrays.geometry import Estimate

N_LAYERS, SIZE, STEPS, PROBES = 10, 400, 12, 256
LAYERS = [slice(i * SIZE, (i + 1) * SIZE) for i in range(N_LAYERS)]

COSINES = np.array([0.2, 0.07, -0.07, 0.06, -0.06, 0.06, -0.06, 0.07, -0.07, -0.2])
"""Extra cosines of the layers: the first and the last one are unlike the others."""

SUM_STDERR = 0.01
"""Standard error of a known sum, relative to the largest value that the sum can have."""


class Path(NamedTuple):
    """Displacements of a window's steps, a vector v, and their products by layer."""

    a: np.ndarray  # (step, element)
    f: np.ndarray  # (element,)
    v: np.ndarray  # (element,)
    products: np.ndarray  # (step, layer)
    basis: np.ndarray = np.zeros((1, N_LAYERS * SIZE))  # (vector, element)


def unlike_path(rng: np.random.Generator, first: float = 1.0) -> Path:
    """Return a path that leaves its straight line, in some layers more along v than in others."""
    # Vectors are `first` times as long in the first layer.
    f, v = rng.normal(size=(2, N_LAYERS * SIZE))
    v += 0.3 * f
    time = np.arange(1, STEPS + 1)[:, None] / (STEPS + 1)
    bulge = np.sqrt(time * (1 - time))
    own, turning = rng.normal(size=(2, f.size))
    cosines = np.repeat(COSINES, SIZE)
    aside = own * np.cos(1.5 * time) + turning * np.sin(1.5 * time) + cosines * v
    a = time * f + 1.5 * bulge * aside
    for vectors in (a, f, v):
        vectors[..., LAYERS[0]] *= first
    return Path(a, f, v, by_layer(a, v))


def by_layer(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([x[..., part] @ y[part] for part in LAYERS], -1)


def estimated(
    path: Path, rng: np.random.Generator, *, has_sum: bool, is_guessed: bool
) -> np.ndarray:
    """Return errors over standard errors, by step and layer."""
    signs = rng.choice([-1.0, 1.0], size=(PROBES, path.f.size))
    probes = signs / np.sqrt(PROBES)

    def known(x: np.ndarray) -> ProbedVectors:
        return ProbedVectors((x**2).sum(-1), x @ path.basis.T, x @ probes.T)

    a, basis, f, v = (known(x) for x in (path.a, path.basis, path.f, path.v))
    whole = displacement_product(a, basis, f, v, f_dot_v=float(path.f @ path.v))
    total = None
    if has_sum:
        v_sq = by_layer(path.v, path.v)
        lengths = np.sqrt(np.array([by_layer(a, a) for a in path.a]) * v_sq)
        stderr = SUM_STDERR * lengths.sum(0)
        total = Estimate(path.products.sum(0) + stderr * rng.normal(size=10), stderr)

    def on_basis(x: np.ndarray) -> np.ndarray:
        return np.stack([by_layer(x, s) for s in path.basis], -1)

    (value, stderr), common, measured = layer_products(
        whole,
        a_sq=np.array([by_layer(a, a) for a in path.a]),
        a_dot_basis=on_basis(path.a),
        f_sq=by_layer(path.f, path.f),
        f_dot_basis=on_basis(path.f),
        f_dot_v=by_layer(path.f, path.v),
        v_sq=by_layer(path.v, path.v),
        v_dot_basis=on_basis(path.v),
        v_probes=np.stack([probes[:, part] @ path.v[part] for part in LAYERS]),
        gram=on_basis(path.basis).swapaxes(0, 1),
        sizes=np.full(N_LAYERS, float(SIZE)),
        total=total,
    )
    if total is not None:
        value, stderr = meeting(total, value, stderr, common, whole.aside_probes)
    if not is_guessed:
        value, stderr = measured
    z: np.ndarray = (value - path.products) / stderr
    return z


def meeting(
    total: Estimate,
    value: np.ndarray,
    stderr: np.ndarray,
    common: np.ndarray,
    probes: np.ndarray,
) -> Estimate:
    """Let the products of every layer meet their sum, with full matrices."""
    unit = probes / np.linalg.norm(probes, axis=1, keepdims=True)
    value, stderr = value.copy(), stderr.copy()
    for i in range(N_LAYERS):
        turning = np.sqrt(np.maximum(stderr[:, i] ** 2 - common[:, i] ** 2, 0))
        covariance = np.outer(turning, turning) * (unit @ unit.T)
        covariance += np.outer(common[:, i], common[:, i])
        mixed = covariance.sum(1)
        gain = mixed / (mixed.sum() + total.stderr[i] ** 2)
        value[:, i] += gain * (total.value[i] - value[:, i].sum())
        stderr[:, i] = np.sqrt(np.diag(covariance) - gain * mixed)
    return Estimate(value, stderr)


@pytest.mark.parametrize(
    ("has_sum", "is_guessed"),
    [(False, True), (True, True), (False, False)],
    ids=["probes", "with their sum", "without a guess"],
)
def test_errors_are_honest_in_every_layer(*, has_sum: bool, is_guessed: bool):
    z = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        path = unlike_path(rng)
        z += [
            estimated(path, rng, has_sum=has_sum, is_guessed=is_guessed)
            for _ in range(12)
        ]
    scores = np.sqrt(np.mean(np.square(z), axis=(0, 1)))
    # Of the 72 draws of the probes, the directions of a window's steps are two or three.
    assert (scores > 0.75).all()
    assert (scores < 1.25).all()


def test_errors_of_a_layer_with_most_of_the_norm_are_those_of_the_whole():
    z = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        path = unlike_path(rng, first=6.0)
        z += [
            estimated(path, rng, has_sum=False, is_guessed=True)[:, 0]
            for _ in range(24)
        ]
    assert 0.85 < np.sqrt(np.mean(np.square(z))) < 1.15


def narrow_path(rng: np.random.Generator, directions: int) -> Path:
    """Return a window of a random walk whose first layer moves in few directions."""
    before, after = 2 * STEPS, 3 * STEPS
    updates = rng.normal(size=(before + STEPS + 1 + after, N_LAYERS * SIZE))
    updates += 0.2 * rng.normal(size=updates.shape[1])
    few = rng.normal(size=(directions, SIZE)) / np.sqrt(directions)
    updates[:, LAYERS[0]] = updates[:, LAYERS[0]][:, :directions] @ few
    past, own, later = np.split(updates, [before, before + STEPS + 1])
    f = own.sum(0)
    anchor = rng.normal(size=f.size)
    basis = np.stack([anchor, past[STEPS:].sum(0), past.sum(0)])
    v = f + later.sum(0)
    for layer in LAYERS:
        # What is left of v is orthogonal to the basis, layer by layer.
        v[layer] -= basis[:, layer].T @ np.linalg.pinv(basis[:, layer].T) @ v[layer]
    a = np.cumsum(own, 0)[:-1]
    return Path(a, f, v, by_layer(a, v), basis)


@pytest.mark.parametrize("has_sum", [False, True], ids=["probes", "with their sum"])
def test_a_layer_that_moves_in_few_directions_has_honest_errors(*, has_sum: bool):
    z = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        path = narrow_path(rng, directions=10)
        z += [
            estimated(path, rng, has_sum=has_sum, is_guessed=True)[:, 0]
            for _ in range(4)
        ]
    assert 0.8 < np.sqrt(np.mean(np.square(z))) < 1.2
