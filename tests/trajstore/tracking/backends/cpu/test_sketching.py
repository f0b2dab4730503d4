"""Compare the compiled loops of sketches and probes with the NumPy formulas that analysis uses."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from trajstore.format.arrays import MAX_BLOCK, n_blocks
from trajstore.sketch import onebit
from trajstore.sketch.fold import SHIFT, Fold
from trajstore.sketch.probes import Probes
from trajstore.sketch.rotation import rotate
from trajstore.sketch.signs import Role, random_signs
from trajstore.tracking.backends.cpu import coding, compiling, sketching
from trajstore.tracking.backends.cpu.ranges import LENGTH, PLACE, START

_hadamard = compiling.standalone(sketching._hadamard)

SIZES = [2**k for k in (3, 4, 5, 6, 8, 9, 12, 16, 17)]
"""Sizes below 16, powers of 4, other powers of 2, and the size of two blocks."""


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    """Compile for the types that recorders use; calls would otherwise choose their own."""
    compiling.compile_waiting()


def step_signs(size: int) -> Any:
    return random_signs(size, seed=2, role=Role.STEP).astype(np.int8)


def normal(*shape: int) -> Any:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("n", [2**k for k in range(12)])
def test_hadamard_equals_scipys_matrix(n: int):
    linalg = pytest.importorskip("scipy.linalg")
    vector = np.random.default_rng(n).integers(-8, 9, n).astype(np.float32)
    expected = linalg.hadamard(n) @ vector.astype(np.float64)
    _hadamard(vector, n)
    # Sums of small integers are exact.
    np.testing.assert_array_equal(vector, expected)


def butterflies(vector: Any) -> Any:
    """Apply the Hadamard transform with the kernel's fixed order of levels."""
    n = len(vector)
    levels = [8, 4, 2, 1] if n >= 16 else []
    while (h := 2 ** len(levels)) < n:
        levels += [2 * h, h] if 4 * h <= n else [h]
    for h in levels:
        pairs = vector.reshape(-1, 2, h)
        vector = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1)
    return vector.reshape(n)


@pytest.mark.parametrize("n", [2**k for k in range(18)])
def test_hadamard_adds_in_a_fixed_order(n: int):
    vector = normal(n)
    expected = butterflies(vector.copy())
    _hadamard(vector, n)
    # With the same order, recordings stay the same bit for bit.
    np.testing.assert_array_equal(vector, expected)


def sketch(buckets: Any, filled: int, signs: Any, block: int, code: Any, scales: Any):
    sketching.rotate(buckets, filled, signs, block, block)
    coding.code_signs(buckets, code, scales)


@pytest.mark.parametrize("size", SIZES)
def test_sketch_equals_rotation_and_code(size: int):
    vector = normal(size)
    signs = step_signs(size)
    code, scales = np.zeros(size // 8, np.uint8), np.zeros(n_blocks(size), np.float32)
    rotated = rotate(vector, signs)
    expected_code, expected_scales = onebit.encode(rotated)

    sketch(vector, size, signs, min(size, MAX_BLOCK), code, scales)

    np.testing.assert_allclose(scales, expected_scales, rtol=2e-6)
    different = np.unpackbits(code ^ expected_code).astype(bool)
    # Signs may differ only for numbers that are 0 up to rounding.
    assert (np.abs(rotated[different]) < 1e-5).all()
    assert different.mean() < 1e-3


@pytest.mark.parametrize("filled", [1, 16, 255, 1000, 10_000, 70_000, 2**17])
def test_skipping_zero_buckets_does_not_change_the_sketch(filled: int):
    size, block = 2**17, MAX_BLOCK
    signs = step_signs(size)
    sketches = []
    for filled_argument in (filled, size):
        buckets = np.zeros(size, np.float32)
        buckets[:filled] = normal(filled)
        code, scales = np.zeros(size // 8, np.uint8), np.zeros(2, np.float32)
        sketch(buckets, filled_argument, signs, block, code, scales)
        sketches.append((code, scales))
    (code, scales), (expected_code, expected_scales) = sketches
    np.testing.assert_array_equal(code, expected_code)
    np.testing.assert_array_equal(scales, expected_scales)


@pytest.mark.parametrize(
    ("bad", "scale"), [(0.0, 0.0), (np.nan, np.nan), (np.inf, np.nan)]
)
def test_scale_of_zero_or_nonfinite_blocks(bad: float, scale: float):
    vector = np.zeros(256, np.float32)
    vector[7] = bad
    scales = np.ones(1, np.float32)
    ones = np.ones(256, np.int8)
    sketch(vector, 256, ones, 256, np.zeros(32, np.uint8), scales)
    np.testing.assert_array_equal(scales, np.float32(scale))


def test_zero_counts_as_positive():
    code = np.zeros(2, np.uint8)
    sketch(
        np.zeros(16, np.float32),
        16,
        np.ones(16, np.int8),
        16,
        code,
        np.zeros(1, np.float32),
    )
    assert code.tolist() == [255, 255]


@pytest.mark.parametrize("filled", [5, 70_000, 2**18])
def test_rotation_mixes_blocks(filled: int):
    size = 2**18
    vector, signs = np.zeros(size, np.float32), step_signs(size)
    vector[:filled] = normal(filled)
    rotated = vector.copy()
    sketching.rotate(rotated, filled, signs, size, MAX_BLOCK)
    expected = rotate(vector, signs, is_mixed=True)
    np.testing.assert_allclose(rotated, expected, atol=1e-5)


@pytest.mark.parametrize("n", [64, 192, 65536 + 64])
@pytest.mark.parametrize("step", [0, 4, 2**40])
@pytest.mark.parametrize("seed", [0, 3, 2**64 - 1])
def test_signs_equal_numpys(n: int, step: int, seed: int):
    signs = np.zeros(n, np.int8)
    sketching.draw_signs(seed, Role.STEP, step, signs)
    expected = random_signs(n, seed=seed, role=Role.STEP, step=step)
    np.testing.assert_array_equal(signs, expected)


def second_fold(probes: Probes) -> tuple[Any, int, int, int]:
    width = probes.bucket_fold.width
    return probes.bucket_signs.astype(np.int8), width, probes.block, probes.shift


@pytest.mark.parametrize("is_shifted", [False, True])
@pytest.mark.parametrize(
    ("size", "buckets", "count"),
    [(40, 64, 16), (61, 64, 16), (1000, 64, 16), (5000, 64, 16), (9000, 4096, 1024)],
)
def test_fold_and_probe_equal_numpys(
    size: int, buckets: int, count: int, is_shifted: bool
):
    fold = Fold(size=size, buckets=buckets, seed=5, column_role=Role.FOLD)
    probes = Probes(fold=fold, count=count, is_shifted=is_shifted)
    vector = np.random.default_rng(size).integers(-8, 9, size).astype(np.float32)
    n_columns = fold.width + SHIFT * (fold.n_rows - 1)
    columns = random_signs(n_columns, seed=5, role=Role.FOLD).astype(np.int8)
    folded = np.zeros((2, 1, buckets), np.float32)
    out = np.full((1, count), 7, np.float32)

    # Ranges in an order of their own, the first of them longer than a row of the fold.
    cuts = np.array([0, min(size, 2 * fold.width + 3), size, size])
    ranges = np.zeros((3, 6), np.int64)
    ranges[:, START] = ranges[:, PLACE] = cuts[:-1]
    ranges[:, LENGTH] = np.diff(cuts)
    for part in folded:
        sketching.fold(
            vector, ranges[::-1].copy(), fold.width, columns, probes.row_signs, part[0]
        )
    sketching.probe(folded, fold.width, *second_fold(probes), out)

    np.testing.assert_array_equal(folded[0, 0], fold(vector, probes.row_signs))
    # Both parts hold the same fold.
    np.testing.assert_array_equal(out[0], 2 * probes(vector))


@pytest.mark.parametrize("filled", [1, 16, 17, 40, 61])
def test_skipping_zero_buckets_does_not_change_probes(filled: int):
    fold = Fold(size=5000, buckets=64, seed=5, column_role=Role.FOLD)
    arguments = second_fold(Probes(fold=fold, count=16))
    folded = np.zeros((1, 1, 64), np.float32)
    folded[0, 0, :filled] = normal(filled)
    whole, part = np.zeros((2, 1, 16), np.float32)
    sketching.probe(folded, fold.width, *arguments, whole)
    sketching.probe(folded, filled, *arguments, part)
    np.testing.assert_array_equal(part, whole)
