"""Test ``analyzers._engine.arrays.displacement_product``."""

from typing import NamedTuple

import numpy as np
import pytest

from analyzers._engine.arrays.displacement_product import (
    PRIOR_ODDS,
    ProbedVectors,
    Product,
    cosine_spread,
    displacement_product,
    layer_products,
)

SIZE, PROBES, RANK, STEPS = 300, 64, 2, 8


class Path(NamedTuple):
    """Displacements a of a window's steps and f of its end, a basis, and a vector v."""

    a: np.ndarray
    f: np.ndarray
    basis: np.ndarray
    v: np.ndarray


def random_path(seed: int = 0) -> Path:
    """Return a noisy path that ends at f, and a vector v that is partly along f."""
    rng = np.random.default_rng(seed)
    basis = rng.normal(size=(RANK, SIZE))
    steps = rng.normal(size=(STEPS, SIZE)) + 0.7 * rng.normal(size=SIZE)
    a = np.cumsum(steps, axis=0)
    v = rng.normal(size=SIZE) + 0.05 * a[-1]
    coefficients, *_ = np.linalg.lstsq(basis.T, v, rcond=None)
    return Path(a, a[-1], basis, v - coefficients @ basis)


def known(vectors: np.ndarray, basis: np.ndarray, probes: np.ndarray) -> ProbedVectors:
    return ProbedVectors((vectors**2).sum(-1), vectors @ basis.T, vectors @ probes.T)


def estimated(path: Path, probes: np.ndarray) -> Product:
    a, basis, f, v = (
        known(x, path.basis, probes) for x in (path.a, path.basis, path.f, path.v)
    )
    return displacement_product(a, basis, f, v, f_dot_v=float(path.f @ path.v))


def draw_probes(rng: np.random.Generator) -> np.ndarray:
    """Return random signs P, scaled so that the mean of <P a, P v> is <a, v>."""
    positive = rng.random((PROBES, SIZE)) < 0.5
    probes: np.ndarray = np.where(positive, 1.0, -1.0) / np.sqrt(PROBES)
    return probes


def test_probes_that_lose_nothing_give_the_exact_products():
    path = random_path()
    result = estimated(path, np.eye(SIZE))
    np.testing.assert_allclose(result.estimate.value, path.a @ path.v, rtol=1e-8)
    # Subtract the part on the basis, and the part along the rest of f.
    f = path.f - result.f_on_basis @ path.basis
    a = path.a - result.a_on_basis @ path.basis - result.advance[:, None] * f
    # The ridge of the regression is 1e-8.
    np.testing.assert_allclose(a @ path.basis.T, 0, atol=1e-5)
    np.testing.assert_allclose(a @ f, 0, atol=1e-5)
    np.testing.assert_allclose(result.aside[:-1], np.linalg.norm(a[:-1], axis=1))
    np.testing.assert_allclose(result.aside_probes, a, atol=1e-6)
    rest = path.v - (path.f @ path.v) / (f @ f) * f
    expected = (a[:-1] @ rest) / np.linalg.norm(rest) / np.linalg.norm(a[:-1], axis=1)
    np.testing.assert_allclose(result.cosine[:-1], expected, atol=1e-6)


@pytest.fixture(scope="module")
def draws() -> tuple[Path, list[Product]]:
    """A path, and the products that 400 draws of the probes estimate for it."""
    path, rng = random_path(), np.random.default_rng(1)
    return path, [estimated(path, draw_probes(rng)) for _ in range(400)]


def test_estimates_are_nearly_unbiased(draws: tuple[Path, list[Product]]):
    path, products = draws
    values = np.array([product.estimate.value for product in products])
    errors = values - path.a @ path.v
    stderr = errors.std(0, ddof=1) / np.sqrt(len(products))
    # The bias of a ratio is about 1 / PROBES of its error. Allow four standard errors more.
    bias = errors.std(0) / PROBES
    # The last step is the end of the window, where products are exact.
    assert (abs(errors.mean(0)) < 4 * stderr + bias + 1e-6)[:-1].all()


def test_errors_are_as_large_as_the_standard_errors_say(
    draws: tuple[Path, list[Product]],
):
    path, products = draws
    z = np.array(
        [
            ((p.estimate.value - path.a @ path.v)[:-1] / p.estimate.stderr[:-1])
            for p in products
        ]
    )
    # Standard errors are first order, and assume that two errors are independent.
    rms = np.sqrt((z**2).mean(0))
    assert (rms > 0.6).all()
    assert (rms < 1.35).all()


def test_products_are_exact_at_the_end_of_the_window(
    draws: tuple[Path, list[Product]],
):
    path, products = draws
    for product in products[:20]:
        np.testing.assert_allclose(
            product.estimate.value[-1], path.f @ path.v, rtol=1e-6
        )
        assert product.estimate.stderr[-1] < 1e-3 * abs(path.f @ path.v)


def test_products_are_exact_at_the_anchor():
    path = random_path()
    path = path._replace(a=np.zeros((1, SIZE)))
    result = estimated(path, draw_probes(np.random.default_rng(2)))
    np.testing.assert_array_equal(result.estimate.value, 0)
    np.testing.assert_array_equal(result.estimate.stderr, 0)


@pytest.mark.parametrize("near", [0.3, 0.1, 0.03], ids=str)
def test_error_falls_near_the_end_of_the_window(near: float):
    """The cosine of two vectors with angle t is known to t^2, not to t."""
    rng = np.random.default_rng(3)
    f, other = np.eye(2, SIZE)
    path = random_path()._replace(
        a=(f + near * other)[None], f=f, basis=np.zeros((RANK, SIZE)), v=f
    )
    errors = [
        estimated(
            path, rng.normal(size=(PROBES, SIZE)) / np.sqrt(PROBES)
        ).estimate.value.item()
        - 1
        for _ in range(200)
    ]
    # The standard error is (1 - cosine^2) / sqrt(n). The factor 1.5 allows for the spread
    # of a deviation of 200 numbers, and for higher moments of the cosine.
    assert np.std(errors) < 1.5 * near**2 / np.sqrt(PROBES)


@pytest.mark.parametrize("missing", ["basis", "f", "v"])
def test_products_with_zero_vectors_are_finite(missing: str):
    path = random_path()
    path = path._replace(**{missing: np.zeros_like(getattr(path, missing))})
    result = estimated(path, draw_probes(np.random.default_rng(4)))
    assert all(np.isfinite(field).all() for field in result.estimate)
    if missing == "v":
        np.testing.assert_array_equal(result.estimate.value, 0)


LAYERS = [slice(0, 150), slice(150, 290), slice(290, 300)]


def by_layer(path: Path, whole: Product, probes: np.ndarray) -> tuple[np.ndarray, ...]:
    def split(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.stack([x[..., part] @ y[..., part].T for part in LAYERS], -1)

    estimate = layer_products(
        whole,
        a_sq=np.stack([(path.a[:, part] ** 2).sum(1) for part in LAYERS], -1),
        a_dot_basis=np.moveaxis(split(path.a, path.basis), -1, 1),
        f_sq=split(path.f, path.f),
        f_dot_basis=split(path.f, path.basis).T,
        f_dot_v=split(path.f, path.v),
        v_sq=split(path.v, path.v),
        v_dot_basis=split(path.v, path.basis).T,
        v_probes=np.stack([path.v[part] @ probes[:, part].T for part in LAYERS]),
        gram=np.moveaxis(split(path.basis, path.basis), -1, 0),
        sizes=np.array([part.stop - part.start for part in LAYERS]),
    )
    return *estimate.estimate, split(path.a, path.v)


def test_errors_of_layers_are_of_the_order_of_their_standard_errors():
    path, rng = random_path(), np.random.default_rng(5)
    z = []
    for _ in range(200):
        probes = draw_probes(rng)
        value, stderr, expected = by_layer(path, estimated(path, probes), probes)
        z.append((value - expected)[:-1] / stderr[:-1])
    # The prior draws the cosine of a layer towards the cosine of the whole vectors. The
    # ratio is 1 only for layers whose cosines deviate by the spread that three layers show.
    rms = np.sqrt((np.array(z) ** 2).mean((0, 1)))
    assert (rms > 0.3).all()
    assert (rms < 2).all()


def test_layers_are_drawn_towards_the_cosine_of_the_whole():
    """The result lies between a layer's own product, here exact, and the prior."""
    path, probes = random_path(), np.eye(SIZE)
    # Remove the basis from v layer by layer, as the analysis does.
    for part in LAYERS:
        basis = path.basis[:, part]
        path.v[part] -= basis.T @ np.linalg.lstsq(basis.T, path.v[part])[0]
    whole = estimated(path, probes)
    value, stderr, _ = (x[:-1] for x in by_layer(path, whole, probes))
    f = path.f - whole.f_on_basis @ path.basis
    a_rest = path.a - whole.a_on_basis @ path.basis
    aside = a_rest - whole.advance[:, None] * f
    asides, owns, alongs, noises = [], [], [], []
    for part in LAYERS:
        length = np.linalg.norm(path.v[part])
        # The product of a and f is not known for a single layer.
        f_sq = f[part] @ f[part]
        a_rest_sq = (a_rest[:-1, part] ** 2).sum(1)
        own_aside = np.sqrt(abs(a_rest_sq - whole.advance[:-1] ** 2 * f_sq))
        # The length of the rest of a layer is at least the share that the whole has left.
        share = np.linalg.norm(aside, axis=1) / np.linalg.norm(a_rest, axis=1)
        own_aside = np.maximum(own_aside, share[:-1] * np.sqrt(a_rest_sq))
        along = whole.advance[:-1] * (path.f[part] @ path.v[part])
        own = along + aside[:-1, part] @ path.v[part]
        noise = (whole.aside[:-1] * length) ** 2 / SIZE
        asides.append(own_aside * length)
        owns.append(own - along)
        alongs.append(along)
        noises.append(noise)
    norms, own = np.array(asides).T, np.array(owns).T
    along, noise = np.array(alongs).T, np.array(noises).T
    left = whole.estimate.value[:-1] - along.sum(1)
    expected = norms * (left / norms.sum(1))[:, None]
    trust = (value - along - expected) / (own - expected)
    assert ((trust > 0) & (trust < 1)).all()
    # The cosine of the whole vectors has an error, too, and the error of the layer's own probes is
    # a part of it.
    stated, share = whole.estimate.stderr[:-1, None], norms / norms.sum(1)[:, None]
    whole_sq = (share * stated) ** 2
    tied = share * np.sqrt(noise) * np.minimum(np.sqrt(noise), stated)
    # The probes get their best weight, or as much as leaves the prior a third of their part of the
    # variance. The spread of the layers' cosines, which the prior guesses, is the same in all steps.
    odds = trust / (1 - trust)
    best = odds * (noise - tied) + tied - whole_sq
    prior = np.minimum(best, PRIOR_ODDS * odds**2 * noise)
    spread = prior / norms**2
    np.testing.assert_allclose(spread / spread[0], 1, rtol=0.05)
    variance = (1 - trust) ** 2 * (prior + whole_sq) + trust**2 * noise
    variance += 2 * trust * (1 - trust) * tied
    np.testing.assert_allclose(stderr, np.sqrt(variance), rtol=1e-5)


@pytest.mark.parametrize("spread", [0.05, 0.3])
def test_the_spread_of_cosines_is_found_among_noise(spread: float):
    rng = np.random.default_rng(6)
    noise = rng.uniform(0.01, 0.3, 400) ** 2
    scale = rng.uniform(0.5, 1, 400)
    cosines = rng.normal(0, np.sqrt(spread**2 * scale + noise))
    found = cosine_spread(cosines**2, noise, scale, 1.0)
    assert found == pytest.approx(spread**2, rel=0.35)


def test_nothing_is_known_of_the_spread_of_a_single_layer():
    # The mean square of a standard deviation that is even between 0 and 1.
    for scale, noise in ((0.0, 1.0), (1.0, 1e6)):
        found = cosine_spread(
            np.array([0.3]), np.array([noise]), np.array([scale]), 2.0
        )
        assert found == pytest.approx(1 / 3, rel=1e-3)


def test_single_layer_is_the_whole():
    """The cosine of the layer and the cosine of the whole are the same number."""
    path, probes = random_path(), np.eye(SIZE)
    whole = estimated(path, probes)
    value, _, expected = by_layer(path, whole, probes)
    np.testing.assert_allclose(value.sum(1), expected.sum(1), rtol=0.15)
    single = layer_products(
        whole,
        a_sq=(path.a**2).sum(1)[:, None],
        a_dot_basis=(path.a @ path.basis.T)[:, None],
        f_sq=np.array([path.f @ path.f]),
        f_dot_basis=(path.f @ path.basis.T)[None],
        f_dot_v=np.array([path.f @ path.v]),
        v_sq=np.array([path.v @ path.v]),
        v_dot_basis=(path.v @ path.basis.T)[None],
        v_probes=path.v[None] @ probes.T,
        gram=(path.basis @ path.basis.T)[None],
        sizes=np.array([SIZE]),
    )
    np.testing.assert_allclose(
        single.estimate.value[:, 0], whole.estimate.value, rtol=1e-9
    )
    np.testing.assert_allclose(
        single.estimate.stderr[:, 0], whole.estimate.stderr, rtol=1e-9
    )
