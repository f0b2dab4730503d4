from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from trajstore.sketch.onebit import decode, encode

SIZES = [
    pytest.param(8, id="one byte"),
    pytest.param(64, id="one word"),
    pytest.param(4096, id="several words"),
    pytest.param(65536, id="one block"),
    pytest.param(1 << 18, id="four blocks"),
]


def random_vectors(size: int, n_vectors: int = 1) -> npt.NDArray[Any]:
    rng = np.random.default_rng(size)
    blocks = rng.standard_normal((n_vectors, max(1, size // 65536), min(size, 65536)))
    blocks *= 10.0 ** np.arange(blocks.shape[1])[:, None]
    return blocks.reshape(n_vectors, size).astype(np.float32)


def encode_on_device(
    vector: npt.NDArray[Any], blocks: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    torch = pytest.importorskip("torch")
    from trajstore.sketch_torch import onebit as onebit_torch

    signs = torch.full((len(vector) // 8,), 77, dtype=torch.uint8)
    scales = torch.full((blocks,), 77.0)
    onebit_torch.encode(torch.from_numpy(vector.copy()), signs=signs, scales=scales)
    return signs.numpy(), scales.numpy()


@pytest.mark.parametrize("size", SIZES)
def test_scale_is_energy_over_magnitude_of_each_block(size):
    vectors = random_vectors(size, n_vectors=2)
    _, scales = encode(vectors)
    exact = vectors.astype(np.float64).reshape(2, -1, min(size, 65536))
    expected = np.square(exact).sum(-1) / np.abs(exact).sum(-1)
    assert scales.dtype == np.float32
    # Pairwise float32 sums of positive numbers have small errors.
    np.testing.assert_allclose(scales, expected, rtol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_decoded_vector_is_scale_times_sign(size):
    vectors = random_vectors(size, n_vectors=2)
    signs, scales = encode(vectors)
    assert signs.dtype == np.uint8
    assert signs.shape == (2, size // 8)
    scale_of_element = np.repeat(scales, min(size, 65536), axis=1)
    expected = np.where(vectors >= 0, scale_of_element, -scale_of_element)
    np.testing.assert_array_equal(decode(signs, scales), expected)
    np.testing.assert_array_equal(decode(signs[1], scales[1]), expected[1])


@pytest.mark.parametrize("size", SIZES)
def test_product_of_decoded_vector_and_vector_is_its_squared_norm(size):
    (vector,) = random_vectors(size).astype(np.float64)
    decoded = decode(*encode(vector.astype(np.float32))).astype(np.float64)
    assert decoded @ vector == pytest.approx(vector @ vector, rel=1e-6)


def test_squared_error_of_a_normal_vector_is_as_stated():
    n = 65536
    vector = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    error = decode(*encode(vector)) - vector
    # The error is |y|^2 (n |y|^2 / |y|_1^2 - 1); by the delta method the ratio has the
    # standard deviation pi/2 sqrt(2 + 4 (pi/2 - 1) - 4) / sqrt(n) = 0.83 / sqrt(n).
    ratio = np.square(error).sum(dtype=np.float64) / np.square(vector).sum()
    assert abs(ratio - (np.pi / 2 - 1)) < 5 * 0.83 / np.sqrt(n)


def test_first_entry_is_in_the_highest_bit_and_zero_is_not_negative():
    vector = np.array([1, -1, -1, -1, -1, 0, -0.0, -1], np.float32)
    expected = 0b10000110
    assert encode(vector)[0].tolist() == [expected]
    assert encode_on_device(vector, 1)[0].tolist() == [expected]


def test_every_byte_survives_the_round_trip():
    signs = np.arange(256, dtype=np.uint8)
    vector = decode(signs, np.array([1], np.float32))
    np.testing.assert_array_equal(encode(vector)[0], signs)
    assert encode(vector)[1] == 1
    packed, scales = encode_on_device(vector, 1)
    np.testing.assert_array_equal(packed, signs)
    assert scales == 1


def test_a_zero_block_decodes_to_zeros():
    vector = random_vectors(1 << 18)[0]
    vector[65536:131072] = 0
    signs, scales = encode(vector)
    assert scales[1] == 0
    assert (scales[[0, 2, 3]] > 0).all()
    assert not decode(signs, scales)[65536:131072].any()
    np.testing.assert_allclose(encode_on_device(vector, 4)[1], scales, rtol=1e-6)


def test_a_block_with_nan_decodes_to_nan_and_leaves_others_alone():
    vector = random_vectors(1 << 18)[0]
    clean = encode(vector)[1]
    vector[65536 + 17] = np.nan
    signs, scales = encode(vector)
    assert np.isnan(scales[1])
    np.testing.assert_array_equal(scales[[0, 2, 3]], clean[[0, 2, 3]])
    decoded = decode(signs, scales)
    assert np.isnan(decoded[65536:131072]).all()
    assert np.isfinite(decoded[:65536]).all()
    assert np.isfinite(decoded[131072:]).all()
    on_device = encode_on_device(vector, 4)
    np.testing.assert_array_equal(on_device[0], signs)
    np.testing.assert_allclose(on_device[1], scales, rtol=1e-6)


def test_torch_gives_a_block_with_an_infinity_no_finite_scale():
    vector = random_vectors(64)[0]
    vector[5] = np.inf
    assert np.isnan(encode_on_device(vector, 1)[1])


@pytest.mark.parametrize("size", SIZES)
def test_torch_encodes_like_numpy(size):
    (vector,) = random_vectors(size)
    signs, scales = encode(vector)
    packed, on_device = encode_on_device(vector, len(scales))
    np.testing.assert_array_equal(packed, signs)
    # The sums are added in another order, so they differ by float32 rounding.
    np.testing.assert_allclose(on_device, scales, rtol=1e-6)


def test_torch_scales_tiny_blocks_like_numpy():
    # The squares are as small as 1e-36; the clamp of the magnitude must not change the scale.
    vector = random_vectors(64)[0] * np.float32(1e-18)
    np.testing.assert_allclose(encode_on_device(vector, 1)[1], encode(vector)[1], 1e-5)
