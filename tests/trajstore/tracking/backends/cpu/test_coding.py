"""Compare the compiled codes of sketches with the NumPy formulas that analysis uses."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from trajstore.sketch import levels
from trajstore.tracking.backends.cpu import coding, compiling, folding


def normal(*shape: int) -> Any:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("n_blocks", [1, 4])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_codes_of_several_bits_equal_numpys(bits: int, n_blocks: int):
    numbers = normal(1024)
    numbers[:256] *= 100
    numbers[5], numbers[6] = 0, -0.0
    code, scales = np.full(128 * bits, 7, np.uint8), np.zeros(n_blocks, np.float32)
    folding._code(bits, len(numbers))(numbers, code, scales)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trajstore.format.arrays.MAX_BLOCK", 1024 // n_blocks)
        expected_code, expected_scales = levels.encode(numbers, bits)
    np.testing.assert_allclose(scales, expected_scales, rtol=2e-6)
    ones = np.ones(1, np.float32)
    found, expected = (levels.decode(c, ones, bits) for c in (code, expected_code))
    # Rounding may move a number to the neighbouring level.
    assert (found != expected).mean() < 0.02
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [8, 64, 4096])
@pytest.mark.parametrize("spike", [0, 3.5, 4.5, 6, 20, 300])
def test_scales_of_16_bits_have_the_digits_of_float32(spike: float, size: int):
    """Levels up to 4 are computed from the guide, and rarer ones are looked up."""
    numbers = normal(size)
    numbers[3], numbers[5] = spike, -0.9 * spike
    code, scales = np.zeros(2 * size, np.uint8), np.zeros(1, np.float32)
    folding._code(16, size)(numbers, code, scales)
    found = levels.decode(code, np.ones(1, np.float32), 16).astype(np.float64)
    exact = numbers.astype(np.float64)
    np.testing.assert_allclose(scales, exact @ exact / (exact @ found), rtol=2e-7)


@pytest.mark.parametrize("size", [64, 512, 4096])
def test_scales_of_16_bits_have_no_common_error(size: int):
    """A common error would be that of every product, and no mean would make it smaller."""
    vectors = normal(256, size)
    code, scales = np.zeros((256, 2 * size), np.uint8), np.zeros((256, 1), np.float32)
    for vector, its_code, scale in zip(vectors, code, scales, strict=True):
        folding._code(16, size)(vector, its_code, scale)
    found = levels.decode(code, np.ones_like(scales), 16).astype(np.float64)
    exact = vectors.astype(np.float64)
    errors = scales[:, 0] * (exact * found).sum(1) / (exact**2).sum(1) - 1
    # A scale in float32 is rounded by up to 6e-8, and so are a few of the levels.
    assert np.abs(errors).max() < 1.5e-7
    assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(len(errors)) < 2e-8


def numbers_near(points: Any) -> Any:
    """Return points in float32, and their neighbours on both sides."""
    points = points.astype(np.float32)
    sides = [np.nextafter(points, np.float32(side)) for side in (-np.inf, np.inf)]
    return np.concatenate([points, *sides])


SPECIAL = [0, -0.0, 1e-38, -1e-38, 100, -100, 3e38, -3e38, np.inf, -np.inf]


@pytest.mark.parametrize("bits", [2, 4])
def test_levels_are_counted_borders(bits: int):
    borders = levels.borders(bits)
    numbers = np.append(numbers_near(borders), np.array(SPECIAL, np.float32))
    found = np.zeros(len(numbers), np.int32)
    find = {
        2: coding._find_levels_of_2_bits,
        4: coding._find_levels_of_4_bits,
    }[bits]
    compiling.standalone(find)(numbers, np.float32(1), borders, found)
    expected = np.searchsorted(borders, numbers, side="right")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_guided_levels_are_nearly_the_nearest(bits: int):
    borders, centres = levels.borders(bits), levels.levels(bits)
    ends = levels.GUIDED * (2 * np.arange(levels.N_CELLS + 1) / levels.N_CELLS - 1)
    drawn = np.random.default_rng(2).standard_normal(100_000)
    numbers = np.concatenate(
        [numbers_near(borders), numbers_near(ends), np.array(SPECIAL), drawn]
    ).astype(np.float32)
    found = np.zeros(len(numbers), np.int32)
    compiling.standalone(coding._find_levels_from_guide)(
        numbers, np.float32(1), levels.guide(bits), found
    )
    expected = np.searchsorted(borders, numbers, side="right")
    assert np.abs(found - expected).max() <= 1
    # The squared error of normal numbers grows by less than one part in a thousand.
    least, errors = (
        np.square(drawn - centres[codes[-len(drawn) :]]).sum()
        for codes in (expected, found)
    )
    assert least <= errors <= 1.001 * least


@pytest.mark.parametrize(
    ("bad", "scale"), [(0.0, 0.0), (np.nan, np.nan), (np.inf, np.nan)]
)
@pytest.mark.parametrize("bits", [2, 16])
def test_levels_of_zero_or_nonfinite_blocks(bits: int, bad: float, scale: float):
    numbers, scales = np.zeros(8, np.float32), np.ones(1, np.float32)
    numbers[3] = bad
    folding._code(bits, len(numbers))(numbers, np.zeros(bits, np.uint8), scales)
    np.testing.assert_array_equal(scales, np.float32(scale))


@pytest.mark.parametrize("n_bytes", [1, 7, 8, 17, 64])
def test_packed_signs_equal_numpys(n_bytes: int):
    vector = normal(8 * n_bytes)
    vector[::3] = np.resize(
        np.array([0, -0.0, np.nan, np.inf, -np.inf], np.float32), vector[::3].shape
    )
    code = np.zeros(n_bytes, np.uint8)
    compiling.standalone(coding._pack)(vector, code)
    np.testing.assert_array_equal(code, np.packbits(vector >= 0))
