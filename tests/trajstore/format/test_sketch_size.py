"""Test the choice of numbers and bits of a sketch."""

import pytest

from trajstore.format.sketch_size import is_size, sketch_fields, sketch_size

DEFAULT = 65536

# Parameters, and the numbers and bits per number of a sketch of 65,536 bits.
SIZES = [
    (0, 8, 16),
    (1, 8, 16),
    (9, 16, 16),
    (4096, 4096, 16),
    (4097, 8192, 8),
    (14_500, 16_384, 4),
    (17_000, 32_768, 2),
    (40_000, 65_536, 1),
    (65_536, 65_536, 1),
    (65_537, 65_536, 1),
    (10**9, 65_536, 1),
]


@pytest.mark.parametrize(("n_params", "numbers", "bits"), SIZES)
def test_small_networks_get_more_bits_per_number(
    n_params: int, numbers: int, bits: int
):
    expected = {"sketch_bits": numbers * bits, "bits_per_number": bits}
    assert sketch_size(n_params, DEFAULT) == expected


@pytest.mark.parametrize("most_bits", [1 << k for k in range(3, 25)])
@pytest.mark.parametrize("n_params", [1, 7, 8, 9, 1000, 16_385, 10**6, 10**8])
def test_a_chosen_size_is_chosen_again(n_params: int, most_bits: int):
    size = sketch_size(n_params, most_bits)
    assert is_size(size["sketch_bits"])
    assert size["sketch_bits"] <= most_bits
    assert sketch_size(n_params, size["sketch_bits"]) == size


def test_an_invalid_size_is_left_for_the_specification_to_refuse():
    assert sketch_fields(100, 1000) == {"sketch_version": 2, "sketch_bits": 1000}
