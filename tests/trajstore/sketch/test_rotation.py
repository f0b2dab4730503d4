from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from trajstore.format.arrays import MAX_BLOCK, n_blocks
from trajstore.sketch.rotation import (
    factors,
    hadamard,
    hadamard_matrix,
    rotate,
    rotate_back,
)

SIZES = [
    pytest.param(2**k, id=str(2**k)) for k in (0, 1, 3, 4, 5, 8, 9, 12, 15, 16, 17, 18)
]


def random_vectors(
    size: int, n_vectors: int = 1, seed: int = 0
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n_vectors, size)).astype(np.float32)
    return vectors, rng.choice(np.array([-1, 1], np.float32), size)


def hadamard_slowly(vector: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Apply textbook butterflies in float64, block by block."""
    blocks = vector.astype(np.float64).reshape(-1, min(len(vector), MAX_BLOCK)).copy()
    half = 1
    while half < blocks.shape[1]:
        pairs = blocks.reshape(len(blocks), -1, 2, half)
        blocks = np.stack(
            [pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2
        ).reshape(len(blocks), -1)
        half *= 2
    return np.ravel(blocks / np.sqrt(blocks.shape[1]))


ROUNDS = [pytest.param(False, id="first"), pytest.param(True, id="second")]


def root_of_two(n: int, *, is_second: bool) -> float:
    """Return the factor of a round's transform if n has no square root."""
    is_odd = round(np.log2(n)) % 2 == 1
    return (np.sqrt(2) if is_second else np.sqrt(0.5)) if is_odd else 1.0


@pytest.mark.parametrize("is_second", ROUNDS)
@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_matrix_equals_scipys(n, is_second):
    linalg = pytest.importorskip("scipy.linalg")
    expected = linalg.hadamard(n) / np.sqrt(n) * root_of_two(n, is_second=is_second)
    matrix = hadamard_matrix(n, is_second=is_second)
    np.testing.assert_allclose(matrix, expected, rtol=1e-15)


@pytest.mark.parametrize("is_second", ROUNDS)
@pytest.mark.parametrize("n", [1, 8, 16, 32, 128, 512, 2048])
def test_transform_equals_scipys(n, is_second):
    linalg = pytest.importorskip("scipy.linalg")
    vectors, _ = random_vectors(n, n_vectors=3)
    expected = vectors.astype(np.float64) @ linalg.hadamard(n) / np.sqrt(n)
    expected *= root_of_two(n, is_second=is_second)
    # Each factor rounds numbers of size 1 a few times.
    transformed = hadamard(vectors, is_second=is_second)
    np.testing.assert_allclose(transformed, expected, atol=3e-6)


@pytest.mark.parametrize("is_second", ROUNDS)
@pytest.mark.parametrize("size", SIZES)
def test_transform_works_block_by_block(size, is_second):
    vectors, _ = random_vectors(size, n_vectors=2)
    expected = np.stack([hadamard_slowly(vector) for vector in vectors])
    block = min(size, MAX_BLOCK)
    transformed = hadamard(vectors, is_second=is_second)
    assert transformed.dtype == np.float32
    expected *= root_of_two(block, is_second=is_second)
    np.testing.assert_allclose(transformed, expected, atol=7e-6)


@pytest.mark.parametrize("is_torch", [False, True])
@pytest.mark.parametrize("size", [8, 128, 512, 2048, 4096])
def test_rotation_has_no_common_error(size, is_torch):
    """The root of 2, rounded, would change the length of every vector by 3e-8 or 7e-8."""
    vectors, signs = random_vectors(size, n_vectors=256)
    rotated = rotate(vectors, signs)
    if is_torch:
        torch = pytest.importorskip("torch")
        from trajstore.sketch_torch.rotation import Rotation

        rotated, rotation = vectors.copy(), Rotation(size, torch.device("cpu"))
        for vector in rotated:
            rotation(torch.from_numpy(vector), torch.from_numpy(signs))
    for a, b in [(vectors, rotated), (rotated, rotate_back(rotated, signs))]:
        before, after = ((v.astype(np.float64) ** 2).sum(1) for v in (a, b))
        changes = np.sqrt(after / before) - 1
        assert abs(changes.mean()) < max(
            4e-9, 4 * changes.std() / np.sqrt(len(changes))
        )


def test_blocks_have_at_most_65536_elements():
    assert MAX_BLOCK == 65536
    assert [n_blocks(2**k) for k in (3, 16, 17, 20)] == [1, 1, 2, 16]


@pytest.mark.parametrize("size", [2**k for k in range(17)])
def test_factors_are_small_and_multiply_to_the_size(size):
    assert np.prod(factors(size)) == size
    assert max(factors(size)) <= 16


@pytest.mark.parametrize("size", SIZES)
def test_rotation_keeps_inner_products(size):
    vectors, signs = random_vectors(size, n_vectors=3)
    rotated = rotate(vectors, signs).astype(np.float64)
    exact = vectors.astype(np.float64)
    np.testing.assert_allclose(
        rotated @ rotated.T, exact @ exact.T, rtol=1e-5, atol=1e-5 * size
    )


def test_rotation_is_the_formula():
    linalg = pytest.importorskip("scipy.linalg")
    vectors, signs = random_vectors(64, n_vectors=2)
    H = linalg.hadamard(64) / 8
    swapped = [*signs[32:], *signs[:32]]
    matrix = H @ np.diag(swapped) @ H @ np.diag(signs)
    np.testing.assert_allclose(rotate(vectors, signs), vectors @ matrix.T, atol=3e-6)


@pytest.mark.parametrize("size", SIZES)
def test_rotating_back_is_the_inverse(size):
    vectors, signs = random_vectors(size, n_vectors=2)
    back = rotate_back(rotate(vectors, signs), signs)
    np.testing.assert_allclose(back, vectors, atol=1e-5)
    forth = rotate(rotate_back(vectors, signs), signs)
    np.testing.assert_allclose(forth, vectors, atol=1e-5)


def test_each_vector_has_signs_of_its_own():
    vectors, signs = random_vectors(64, n_vectors=2)
    signs_by_vector = np.stack([signs, signs[::-1]])
    rotated = rotate(vectors, signs_by_vector)
    for i in range(2):
        np.testing.assert_allclose(
            rotated[i], rotate(vectors[i], signs_by_vector[i]), atol=1e-6
        )


def test_rotation_does_not_change_its_argument():
    vectors, signs = random_vectors(1024)
    before = vectors.copy()
    rotate(vectors, signs)
    rotate_back(vectors, signs)
    np.testing.assert_array_equal(vectors, before)


def test_two_rounds_spread_a_single_entry():
    # After one round all entries have the same magnitude; after two rounds they look Gaussian.
    _, signs = random_vectors(65536)
    vector = np.zeros(65536, np.float32)
    vector[123] = 256
    rotated = rotate(vector, signs)
    n = 65536
    # Moments of a standard normal, within five standard errors.
    assert abs(np.mean(np.abs(rotated)) - np.sqrt(2 / np.pi)) < 5 * 0.603 / np.sqrt(n)
    assert abs(np.mean(rotated**4) - 3) < 5 * np.sqrt(96 / n)


@pytest.mark.parametrize("size", [*SIZES[1:]])
def test_torch_rotates_like_numpy(size):
    torch = pytest.importorskip("torch")
    from trajstore.sketch_torch.rotation import Rotation

    vectors, signs = random_vectors(size)
    on_device = Rotation(size, torch.device("cpu"))
    # The second rotation uses the temporaries again.
    for sign in (1, -1):
        vector = torch.from_numpy(sign * vectors[0])
        on_device(vector, torch.from_numpy(signs))
        expected = rotate(sign * vectors[0], signs)
        np.testing.assert_allclose(vector.numpy(), expected, atol=5e-6)


@pytest.mark.parametrize("size", [16, 256, 4096])
def test_torch_rotates_exactly_where_sums_are_exact(size):
    # If the size is a power of four, the entries of the factors are powers of two.
    torch = pytest.importorskip("torch")
    from trajstore.sketch_torch.rotation import Rotation

    rng = np.random.default_rng(3)
    vector = rng.integers(-8, 9, size).astype(np.float32)
    signs = rng.choice(np.array([-1, 1], np.float32), size)
    rotated = torch.from_numpy(vector.copy())
    Rotation(size, torch.device("cpu"))(rotated, torch.from_numpy(signs))
    np.testing.assert_array_equal(rotated.numpy(), rotate(vector, signs))
    swapped = np.concatenate([signs[size // 2 :], signs[: size // 2]])
    exact = hadamard_slowly(swapped * hadamard_slowly(signs * vector))
    np.testing.assert_array_equal(rotated.numpy(), exact)


@pytest.mark.parametrize("n_blocks", [1, 2, 8])
def test_mixed_blocks_have_equal_energies_and_rotate_back(
    n_blocks: int, monkeypatch: pytest.MonkeyPatch
):
    torch = pytest.importorskip("torch")
    from trajstore.sketch_torch.rotation import Rotation

    size = 4096
    monkeypatch.setattr("trajstore.format.arrays.MAX_BLOCK", size // n_blocks)
    vectors, signs = random_vectors(size)
    # One vector fills only the first block, and another has one entry.
    vectors[0, size // n_blocks :] = 0
    vectors = np.concatenate([vectors, np.eye(size, dtype=np.float32)[5:6]])
    rotated = rotate(vectors, signs, is_mixed=True)
    energies = np.square(rotated).reshape(len(vectors), n_blocks, -1).sum(-1)
    share = energies / energies.sum(1, keepdims=True)
    # The energy of n normal numbers has a relative standard deviation of sqrt(2 / n).
    deviation = 5 * np.sqrt(2 / (size // n_blocks)) / n_blocks
    np.testing.assert_allclose(share, 1 / n_blocks, atol=deviation)
    back = rotate_back(rotated, signs, is_mixed=True)
    np.testing.assert_allclose(back, vectors, atol=1e-5)
    on_device = Rotation(size, torch.device("cpu"), is_mixed=True)
    vector = torch.from_numpy(vectors[0].copy())
    on_device(vector, torch.from_numpy(signs))
    np.testing.assert_allclose(vector.numpy(), rotated[0], atol=1e-5)
