from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajstore.format.layout import BLOCK
from trajstore.sketch.deltas import LEVELS, decode, encode

IMPLEMENTATIONS = [pytest.param(False, id="numpy"), pytest.param(True, id="torch")]
EPS = float(np.finfo(np.float32).eps)

MAGNITUDES = [
    pytest.param(1e-30, id="1e-30"),
    pytest.param(1e-3, id="1e-3"),
    pytest.param(1.0, id="1"),
    pytest.param(1e30, id="1e30"),
]


def encode_with(
    difference: npt.NDArray[Any], on_device: bool
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    if not on_device:
        return encode(difference)
    torch = pytest.importorskip("torch")
    from trajstore.sketch_torch import deltas as deltas_torch

    vector = torch.from_numpy(difference)
    scales = deltas_torch.block_scales(vector)
    return deltas_torch.encode(vector, scales).numpy(), scales.numpy()


def decode_with(
    codes: npt.NDArray[Any], scales: npt.NDArray[Any], on_device: bool
) -> npt.NDArray[Any]:
    if not on_device:
        return decode(codes, scales)
    torch = pytest.importorskip("torch")
    from trajstore.sketch_torch import deltas as deltas_torch

    return deltas_torch.decode(
        torch.from_numpy(codes), torch.from_numpy(scales)
    ).numpy()


def random_difference(
    seed: int, magnitude: float = 1.0, blocks: int = 5
) -> npt.NDArray[Any]:
    rng = np.random.default_rng(seed)
    difference = rng.standard_t(3, (blocks, BLOCK)) * magnitude
    return (difference * rng.uniform(0.1, 10, (blocks, 1))).reshape(-1).astype("f4")


@pytest.mark.parametrize("on_device", IMPLEMENTATIONS)
def test_code_is_the_nearest_level(on_device):
    difference = np.zeros(2 * BLOCK, np.float32)
    difference[:6] = [-254, 1, 1.25, -3, 0.5, 253]
    difference[BLOCK : BLOCK + 3] = [63.5, -0.25, 0.125]
    codes, scales = encode_with(difference, on_device)
    assert codes.dtype == np.int8
    assert scales.dtype == np.float32
    assert scales.tolist() == [2, 0.5]
    # Halves are rounded to even: 1 / 2, -3 / 2, 253 / 2, -0.25 / 0.5.
    assert codes[:7].tolist() == [-127, 0, 1, -2, 0, 126, 0]
    assert codes[BLOCK : BLOCK + 4].tolist() == [127, 0, 0, 0]


@pytest.mark.parametrize("on_device", IMPLEMENTATIONS)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_error_is_at_most_half_a_level(magnitude, on_device):
    difference = random_difference(1, magnitude)
    codes, scales = encode_with(difference, on_device)
    exact = difference.astype(np.float64).reshape(-1, BLOCK)
    levels = np.abs(exact).max(1) / LEVELS
    np.testing.assert_allclose(scales, levels, rtol=2 * EPS)
    error = np.abs(decode_with(codes, scales, on_device).reshape(-1, BLOCK) - exact)
    # The scale, the quotient and the product are rounded, at up to 127 levels.
    assert (error.max(1) <= (0.5 + 4 * LEVELS * EPS) * levels).all()
    # The bound is tight, so the test above would notice a code with half as many levels.
    assert (error.max(1) > 0.45 * levels).all()


@pytest.mark.parametrize("on_device", IMPLEMENTATIONS)
def test_largest_difference_has_the_largest_code(on_device):
    codes, _ = encode_with(random_difference(2), on_device)
    largest = np.abs(codes.reshape(-1, BLOCK).astype(int)).max(1)
    np.testing.assert_array_equal(largest, LEVELS)


@pytest.mark.parametrize("on_device", IMPLEMENTATIONS)
def test_zero_blocks_decode_to_zeros(on_device):
    difference = random_difference(3)
    difference[BLOCK : 2 * BLOCK] = 0
    codes, scales = encode_with(difference, on_device)
    assert scales[1] == 0
    assert not codes[BLOCK : 2 * BLOCK].any()
    decoded = decode_with(codes, scales, on_device).reshape(-1, BLOCK)
    assert not decoded[1].any()
    assert decoded[[0, 2, 3, 4]].any(1).all()


@pytest.mark.parametrize("on_device", IMPLEMENTATIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_values_are_not_coded_and_leave_their_block_alone(value, on_device):
    difference = random_difference(4)
    difference[17] = 0
    difference[BLOCK : 2 * BLOCK] = 0
    expected = encode_with(difference, on_device)
    difference[17] = value
    difference[BLOCK : 2 * BLOCK] = value
    before = difference.copy()
    codes, scales = encode_with(difference, on_device)
    np.testing.assert_array_equal(codes, expected[0])
    np.testing.assert_array_equal(scales, expected[1])
    np.testing.assert_array_equal(difference, before)


@pytest.mark.parametrize("on_device", IMPLEMENTATIONS)
def test_the_smallest_numbers_are_coded(on_device):
    # The scale of the first block is rounded to 0, the scale of the second is denormal.
    difference = np.zeros(2 * BLOCK, np.float32)
    tiny = np.finfo(np.float32).smallest_subnormal
    difference[3], difference[BLOCK + 3] = 50 * tiny, -10000 * tiny
    codes, scales = encode_with(difference, on_device)
    decoded = decode_with(codes, scales, on_device)
    assert scales[0] == 0
    assert decoded[3] == 0
    assert abs(decoded[BLOCK + 3] - difference[BLOCK + 3]) <= 100 * tiny


@pytest.mark.parametrize("on_device", IMPLEMENTATIONS)
@pytest.mark.parametrize("multiple", [150, 178, 255, 300])
def test_denormal_differences_keep_their_sign(multiple, on_device):
    difference = np.zeros(BLOCK, np.float32)
    difference[0] = multiple * np.finfo(np.float32).smallest_subnormal
    codes, _ = encode_with(difference, on_device)
    assert codes[0] > 0


def test_torch_encodes_like_numpy():
    difference = random_difference(5, blocks=50)
    codes, scales = encode_with(difference, on_device=True)
    expected_codes, expected_scales = encode(difference)
    np.testing.assert_array_equal(codes, expected_codes)
    np.testing.assert_array_equal(scales, expected_scales)


@given(
    seed=st.integers(0, 2**32 - 1),
    special=st.lists(
        st.floats(0, width=32, allow_infinity=False), min_size=0, max_size=8
    ),
)
def test_decoding_gives_the_same_bits_everywhere(seed, special):
    pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    # Any bit pattern of a finite scale, including denormal scales.
    scales = rng.integers(0, 0x7F800000, 16, dtype=np.uint32).view(np.float32)
    scales[:4] = rng.integers(0, 0x00800000, 4, dtype=np.uint32).view(np.float32)
    scales[8 : 8 + len(special)] = special
    codes = rng.integers(-128, 128, 16 * BLOCK).astype(np.int8)
    with np.errstate(over="ignore"):
        decoded = decode(codes, scales)
        exact = codes.reshape(-1, BLOCK) * scales.astype(np.float64)[:, None]
        expected = exact.astype(np.float32)
    on_device = decode_with(codes, scales, on_device=True)
    # Code times scale is exact in float64, so `expected` is the product rounded once.
    np.testing.assert_array_equal(decoded, expected.reshape(-1))
    np.testing.assert_array_equal(on_device.view(np.uint32), decoded.view(np.uint32))


def test_repeated_codes_follow_a_moving_vector_without_drift():
    rng = np.random.default_rng(6)
    point = rng.standard_normal(3 * BLOCK).astype(np.float32)
    anchor, by_device = point.copy(), point.copy()
    for move in range(60):
        point += 0.1 * rng.standard_normal(3 * BLOCK).astype(np.float32)
        codes, scales = encode(point - anchor)
        anchor += decode(codes, scales)
        by_device += decode_with(codes, scales, on_device=move % 2 == 0)
        error = np.abs(point.astype(np.float64) - anchor).reshape(-1, BLOCK).max(1)
        # At most half a level of the last difference, plus the rounding of two sums near 4.
        assert (error <= 0.5 * scales + 8 * EPS).all()
        # The scale does not grow: it is at most the largest step, 0.1 times 5.5 sigma, over 127.
        assert (scales < 0.1 * 5.5 / LEVELS).all()
    # NumPy and torch decode to the same bits.
    assert by_device.tobytes() == anchor.tobytes()
