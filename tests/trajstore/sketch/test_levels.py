"""Test codes of several bits per number against normal integrals and slow formulas."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from trajstore.sketch import levels, onebit
from trajstore.sketch.sketch import Sketch

BITS = (1, 2, 4, 8, 16)


def squared_error(centres: Any) -> float:
    """Return the squared error of the nearest levels for a normal vector of norm 1."""
    stats = pytest.importorskip("scipy.stats")
    borders = np.concatenate([[-np.inf], (centres[1:] + centres[:-1]) / 2, [np.inf]])
    share = np.diff(stats.norm.cdf(borders))
    mean = -np.diff(stats.norm.pdf(borders))
    # The scale makes the decoded vector y c / <y, c> per unit of y.
    return float((centres**2 @ share) / (centres @ mean) ** 2 - 1)


@pytest.mark.parametrize("bits", BITS)
def test_variances_are_integrals_over_normal_numbers(bits: int):
    centres = levels.levels(bits).astype(np.float64)
    np.testing.assert_array_equal(centres, -centres[::-1])
    assert squared_error(centres) == pytest.approx(levels.CODE_VARIANCE[bits], rel=2e-5)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_levels_have_the_least_error(bits: int):
    stats = pytest.importorskip("scipy.stats")
    centres = levels.levels(bits).astype(np.float64)
    borders = np.concatenate([[-np.inf], (centres[1:] + centres[:-1]) / 2, [np.inf]])
    # Lloyd's condition: every level is the mean of its interval.
    means = -np.diff(stats.norm.pdf(borders)) / np.diff(stats.norm.cdf(borders))
    np.testing.assert_allclose(centres, means, atol=1e-6)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(8,), (3, 64)])
def test_codes_are_the_nearest_levels(bits: int, shape: tuple[int, ...]):
    vectors = np.random.default_rng(bits).standard_normal(shape).astype(np.float32)
    packed, scales = levels.encode(vectors, bits)
    assert packed.shape == (*shape[:-1], bits * shape[-1] // 8)
    decoded = levels.decode(packed, scales, bits)
    centres = levels.levels(bits).astype(np.float64)
    for y, found in zip(np.atleast_2d(vectors), np.atleast_2d(decoded), strict=True):
        unit = y / np.sqrt(np.mean(np.float64(y) ** 2))
        nearest = centres[np.abs(unit[:, None] - centres).argmin(1)]
        expected = nearest * (y.astype(float) @ y) / (y @ nearest)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert found @ y == pytest.approx(y @ y, rel=1e-5)


def test_one_bit_is_the_code_of_signs():
    vectors = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    (signs, scales), (codes, other) = onebit.encode(vectors), levels.encode(vectors, 1)
    np.testing.assert_array_equal(codes, signs)
    decoded = levels.decode(codes, other, 1)
    np.testing.assert_allclose(decoded, onebit.decode(signs, scales), rtol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_the_first_number_has_the_highest_bits(bits: int):
    codes = np.random.default_rng(1).integers(0, 1 << bits, 16)
    packed = levels.pack(codes, bits)
    text = "".join(f"{code:0{bits}b}" for code in codes)
    assert "".join(f"{byte:08b}" for byte in packed) == text


@pytest.mark.parametrize("bits", BITS[1:])
@pytest.mark.parametrize(("bad", "scale"), [(0, 0), (np.nan, np.nan), (np.inf, np.nan)])
def test_scales_of_zeros_and_of_vectors_that_are_not_finite(
    bits: int, bad: float, scale: float
):
    torch = pytest.importorskip("torch")
    from trajstore.sketch_torch.levels import Encoder

    vector = np.zeros(16, np.float32)
    vector[3] = bad
    _, scales = levels.encode(vector, bits)
    np.testing.assert_array_equal(scales, np.float32(scale))
    code, scales = torch.zeros(2 * bits, dtype=torch.uint8), torch.ones(1)
    Encoder(bits, torch.device("cpu"))(
        torch.from_numpy(vector), signs=code, scales=scales
    )
    np.testing.assert_array_equal(scales.numpy(), np.float32(scale))


@pytest.mark.parametrize("bits", BITS[1:])
@pytest.mark.parametrize("n_blocks", [1, 2])
def test_torch_codes_like_numpy(
    bits: int, n_blocks: int, monkeypatch: pytest.MonkeyPatch
):
    torch = pytest.importorskip("torch")
    from trajstore.sketch_torch.levels import Encoder

    monkeypatch.setattr("trajstore.format.arrays.MAX_BLOCK", 128 // n_blocks)
    vector = np.random.default_rng(2).standard_normal(128).astype(np.float32)
    expected, expected_scales = levels.encode(vector, bits)
    code, scales = torch.zeros(16 * bits, dtype=torch.uint8), torch.zeros(n_blocks)
    Encoder(bits, torch.device("cpu"))(
        torch.from_numpy(vector.copy()), signs=code, scales=scales
    )
    np.testing.assert_allclose(scales.numpy(), expected_scales, rtol=2e-6)
    found, decoded = (
        levels.decode(c, s, bits)
        for c, s in ((code.numpy(), expected_scales), (expected, expected_scales))
    )
    # Rounding may move a number to the neighbouring level.
    assert (found != decoded).mean() < 0.02
    np.testing.assert_allclose(found, decoded, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("is_torch", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_scales_have_no_common_error(bits: int, is_torch: bool):
    vectors = np.random.default_rng(9).standard_normal((256, 512)).astype(np.float32)
    codes, scales = levels.encode(vectors, bits)
    if is_torch:
        torch = pytest.importorskip("torch")
        from trajstore.sketch_torch.levels import Encoder

        encode = Encoder(bits, torch.device("cpu"))
        for vector, code, scale in zip(vectors, codes, scales, strict=True):
            given = (torch.from_numpy(array) for array in (vector.copy(), code, scale))
            vector_, code_, scale_ = given
            encode(vector_, signs=code_, scales=scale_)
    decoded = levels.decode(codes, scales, bits).astype(np.float64)
    exact = vectors.astype(np.float64)
    errors = (decoded * exact).sum(1) / np.square(exact).sum(1) - 1
    assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(len(errors)) < 3e-8


def heavy(size: int) -> Any:
    return np.random.default_rng(3).standard_t(1.5, size)


def normal(size: int) -> Any:
    return np.random.default_rng(4).standard_normal(size)


def one_entry(size: int) -> Any:
    return np.eye(size)[size // 3]


PACKED = [
    # Parameters, numbers, bits per number.
    (1000, 1024, 1),
    (700, 1024, 2),
    (600, 1024, 4),
    (513, 1024, 8),
    (300, 512, 16),
]


@pytest.mark.parametrize("draw", [normal, heavy, one_entry])
@pytest.mark.parametrize(("size", "numbers", "bits"), PACKED)
@pytest.mark.parametrize("n_blocks", [1, 4])
def test_packed_sketches_are_unbiased_with_the_stated_variance(
    size: int,
    numbers: int,
    bits: int,
    draw: Any,
    n_blocks: int,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("trajstore.format.arrays.MAX_BLOCK", numbers // n_blocks)
    sketch = Sketch(
        size=size,
        bits=bits * numbers,
        seed=5,
        bits_per_number=bits,
        is_packed=True,
        is_mixed=True,
    )
    g = draw(size)
    g = (g / np.linalg.norm(g)).astype(np.float32)
    noise = np.random.default_rng(6).standard_normal((7, size)) / np.sqrt(size)
    # The first direction is close to g, the others are at random.
    vectors = np.concatenate([0.8 * g[None] + 0.6 * noise[:1], noise[1:]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    exact = vectors @ g.astype(float)
    n = 150
    codes, scales = zip(*(sketch.encode(g, step) for step in range(n)), strict=True)
    decoded = sketch.decode(np.stack(codes), np.stack(scales), np.arange(n))
    folds = np.stack([
        sketch.fold.signed_rows(v.astype(np.float32))[0] for v in vectors
    ])  # fmt: skip
    errors = decoded.row_signs * (decoded.buckets.astype(float) @ folds.T) - exact
    z = errors / np.sqrt(sketch.code_variance * (1 - exact**2))
    # Eight directions in 150 steps; rotations of one entry have few distinct values.
    slack = 0.3 if draw is one_entry else 0.12
    assert np.sqrt(np.mean(z**2)) == pytest.approx(1, abs=slack)
    assert np.abs(z.mean(0)).max() < 4.5 / np.sqrt(n)


def test_every_rotation_of_eight_numbers_is_close_to_unbiased():
    """Enumerate all signs of the rotation of a sketch of eight numbers."""
    from trajstore.sketch.rotation import rotate, rotate_back

    signs = np.array(list(product([-1, 1], repeat=8)), np.float32)
    g = np.random.default_rng(7).standard_normal(8).astype(np.float32)
    rotated = rotate(np.broadcast_to(g, signs.shape).copy(), signs)
    for bits in (2, 4, 8, 16):
        decoded = levels.decode(*levels.encode(rotated, bits), bits)
        mean = rotate_back(decoded, signs).mean(0)
        spread = np.sqrt(levels.CODE_VARIANCE[bits] / 8) * np.linalg.norm(g)
        # Halves of the signs repeat in the second round, so a bias remains.
        np.testing.assert_allclose(mean, g, atol=max(spread, 1e-6))
