from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from trajstore.format.layout import BLOCK
from trajstore.sketch.fold import SHIFT, Fold, largest_prime_below
from trajstore.sketch.signs import Role, random_signs

WIDTHS = [
    pytest.param(4, 3, id="4"),
    pytest.param(8, 7, id="8"),
    pytest.param(64, 61, id="64"),
    pytest.param(1024, 1021, id="1024"),
    pytest.param(4096, 4093, id="4096"),
    pytest.param(65536, 65141, id="65536"),
]

# Sizes of vectors for a fold of width 61.
SIZES = [
    pytest.param(1, id="one element"),
    pytest.param(40, id="shorter than a row"),
    pytest.param(61, id="one row"),
    pytest.param(62, id="one element in the second row"),
    pytest.param(305, id="whole rows"),
    pytest.param(1000, id="a part of the last row"),
]


def make_fold(size: int, buckets: int = 64, seed: int = 11) -> Fold:
    return Fold(size=size, buckets=buckets, seed=seed, column_role=Role.FOLD)


def integers(rng: np.random.Generator, shape: Any) -> npt.NDArray[Any]:
    """Return small integers, whose float32 sums are exact in any order."""
    return np.asarray(rng.integers(-8, 9, shape), np.float32)


def fold_slowly(
    fold: Fold, vector: npt.NDArray[Any], row_signs: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Fold one element after another, in float64."""
    sequence = random_signs(10**5, seed=fold.seed, role=fold.column_role)
    folded = [0.0] * fold.buckets
    for i, value in enumerate(vector):
        row, column = i // fold.width, i % fold.width
        sign = sequence[2 * row + column]
        folded[column] += float(row_signs[row]) * float(sign) * float(value)
    return np.array(folded)


def is_prime(n: int) -> bool:
    return n > 1 and all(n % q for q in range(2, n))


@pytest.mark.parametrize(("buckets", "width"), WIDTHS)
def test_width_is_a_prime_below_the_buckets(buckets, width):
    assert make_fold(10, buckets).width == width
    assert largest_prime_below(width + 1) == width


@pytest.mark.parametrize("buckets", [2**k for k in range(13, 17)])
def test_blocks_in_different_rows_begin_in_different_buckets(buckets):
    width = make_fold(10, buckets).width
    assert width > 0.94 * buckets
    starts = np.sort(width * np.arange(8) % BLOCK)
    assert np.diff(np.append(starts, starts[0] + BLOCK)).min() > 40


def test_no_prime_is_skipped():
    for n in range(3, 300):
        expected = max(k for k in range(n) if is_prime(k))
        assert largest_prime_below(n) == expected


def test_the_prime_is_searched_once_for_all_windows():
    largest_prime_below.cache_clear()
    widths = {replace(make_fold(10, 2**15), window=w).width for w in range(20)}
    assert len(widths) == largest_prime_below.cache_info().misses == 1


@pytest.mark.parametrize("size", SIZES)
def test_fold_sums_signed_rows(size):
    rng = np.random.default_rng(0)
    fold = make_fold(size)
    assert fold.n_rows == -(-size // 61)
    vector = integers(rng, size)
    row_signs = rng.choice(np.array([-1, 1], np.float32), (3, fold.n_rows))
    expected = [fold_slowly(fold, vector, signs) for signs in row_signs]
    folded = fold(vector, row_signs)
    assert folded.dtype == np.float32
    np.testing.assert_array_equal(folded, expected)
    np.testing.assert_array_equal(fold(vector, row_signs[1]), expected[1])


def test_fold_of_real_numbers_is_exact_to_rounding():
    rng = np.random.default_rng(1)
    fold = make_fold(5000)
    vector = rng.standard_normal(5000).astype(np.float32)
    row_signs = rng.choice(np.array([-1, 1], np.float32), fold.n_rows)
    # Sums of 82 numbers of size 1: 82 rounding errors of at most 2^-24 * 82 each.
    np.testing.assert_allclose(
        fold(vector, row_signs), fold_slowly(fold, vector, row_signs), atol=5e-4
    )


def test_fold_does_not_change_its_argument():
    vector = np.ones(100, np.float32)
    fold = make_fold(100)
    fold(vector, np.ones(2, np.float32))
    assert (vector == 1).all()


def test_column_signs_move_by_two_from_row_to_row():
    fold = make_fold(1000)
    signs = fold.column_signs
    assert SHIFT == 2
    assert signs.shape == (17, 61)
    np.testing.assert_array_equal(signs[1:, :-2], signs[:-1, 2:])
    sequence = random_signs(61 + 2 * 16, seed=11, role=Role.FOLD)
    np.testing.assert_array_equal(signs[0], sequence[:61])
    np.testing.assert_array_equal(signs[16], sequence[32:])
    assert not signs.flags.writeable


def test_column_signs_do_not_depend_on_the_number_of_rows():
    np.testing.assert_array_equal(
        make_fold(1000).column_signs[:5], make_fold(300).column_signs
    )


def test_a_part_is_laid_out_like_the_whole():
    vector = integers(np.random.default_rng(2), 1000)
    fold = make_fold(1000)
    whole = fold.signed_rows(vector)
    parts = [
        fold.signed_rows(vector[: 4 * 61]),
        fold.signed_rows(vector[4 * 61 : 9 * 61], first=4),
        fold.signed_rows(vector[9 * 61 :], first=9),
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("size", [5, 7, 14, 30, 49])
def test_inner_products_are_kept_on_average_over_all_row_signs(size):
    # With at most 7 rows, all sign vectors can be tried. Sums of small integers are exact.
    rng = np.random.default_rng(size)
    fold = make_fold(size, buckets=8)
    g, v = integers(rng, size), integers(rng, size)
    row_signs = np.array(list(product([-1, 1], repeat=fold.n_rows)), np.float32)
    folded_g, folded_v = fold(g, row_signs), fold(v, row_signs)
    total = np.sum(folded_g.astype(np.float64) * folded_v)
    assert total == len(row_signs) * np.sum(g.astype(np.float64) * v)


@pytest.mark.parametrize("size", [14, 30, 49])
def test_variance_over_row_signs_is_the_sum_over_pairs_of_rows(size):
    rng = np.random.default_rng(size)
    fold = make_fold(size, buckets=8)
    g, v = integers(rng, size), integers(rng, size)
    row_signs = np.array(list(product([-1, 1], repeat=fold.n_rows)), np.float32)
    estimates = np.sum(fold(g, row_signs).astype(np.float64) * fold(v, row_signs), 1)
    products = fold.signed_rows(g).astype(np.float64) @ fold.signed_rows(v).T
    pairs = np.triu(products + products.T, 1)
    assert estimates.var() == pytest.approx(np.square(pairs).sum(), rel=1e-12)


def test_mean_variance_equals_the_variance_with_independent_signs():
    """Average the variance formula of `trajstore.sketch.fold` over runs.

    For independent signs and vectors of +-1, the variance of each pair of rows b, b' is
    sum_j (g_bj v_b'j + g_b'j v_bj)^2.
    """
    folds = [make_fold(70, buckets=8, seed=seed) for seed in range(1000)]
    rng = np.random.default_rng(5)
    g, v = (rng.choice(np.array([-1, 1], np.float32), 70) for _ in range(2))
    G, V = g.reshape(10, 7), v.reshape(10, 7)
    crossed = np.einsum("bj,cj->bcj", G, V) + np.einsum("bj,cj->bcj", V, G)
    first, second = np.triu_indices(10, 1)
    expected = np.square(crossed[first, second]).sum()
    variances = []
    for fold in folds:
        products = fold.signed_rows(g) @ fold.signed_rows(v).T
        pairs = np.triu(products + products.T, 1)
        variances.append(np.square(pairs).sum())
    standard_error = np.std(variances) / np.sqrt(len(variances))
    assert abs(np.mean(variances) - expected) < 4 * standard_error
    # The standard error is small enough for a meaningful test.
    assert standard_error < 0.01 * expected


@pytest.mark.parametrize("width", [8, 16, 32, 64, 128, 512])
def test_columns_of_weight_matrices_spread_over_the_buckets(width):
    # In rows of 64, the one heavy column of the matrix would fall on 64 / width buckets.
    rows = 61
    column = np.zeros((rows, width), np.float32)
    column[:, 3] = 1
    fold = make_fold(rows * width)
    energies = np.square(fold.signed_rows(column.reshape(-1))).sum(0)
    # The width of the matrix is coprime to 61, so each of the 61 rows falls on another bucket.
    np.testing.assert_array_equal(energies[:61], np.ones(61))


@pytest.mark.parametrize("size", [*SIZES, pytest.param(9000, id="many rows")])
@pytest.mark.parametrize("chunk", [1, 61 * 3, 5000, 1 << 20])
@pytest.mark.parametrize("n_spans", [1, 3])
def test_torch_folds_like_numpy(size, chunk, n_spans, monkeypatch):
    torch = pytest.importorskip("torch")
    from trajstore.sketch_torch import fold as fold_torch
    from trajstore.sketch_torch.fold import Span

    monkeypatch.setitem(fold_torch.CHUNK, "cpu", chunk)
    rng = np.random.default_rng(size)
    fold = make_fold(size)
    vectors = integers(rng, (3, size))
    row_signs, weighted_signs = rng.choice(
        np.array([-1, 1], np.float32), (2, fold.n_rows)
    )
    n_blocks = -(-size // BLOCK)
    buffer = torch.zeros(3, n_blocks * BLOCK)
    borders = BLOCK * np.linspace(0, n_blocks, n_spans + 1).astype(int)
    spans = [Span(a, a, b - a) for a, b in pairwise(borders.tolist())]
    buffers = [torch.zeros_like(buffer), buffer]
    on_device = fold_torch.FoldOnDevice(fold, buffers, spans)
    # The buffer is filled afterwards, because each call must fold its current contents.
    buffer[:, :size] = torch.from_numpy(vectors)
    before = buffer.clone()
    weights = rng.choice(np.array([0.25, 0.5, 1, 2], np.float32), n_blocks)
    expected = np.stack([fold(vector, row_signs) for vector in vectors])
    weights_by_element = np.repeat(weights, BLOCK)[:size]
    expected_weighted = fold(vectors[0] * weights_by_element, weighted_signs)
    out, weighted_out = torch.zeros(3, 64), torch.zeros(64)
    for calls in (1, 2):
        weighted = fold_torch.Weighted(
            torch.from_numpy(weights), torch.from_numpy(weighted_signs), weighted_out
        )
        on_device(1, torch.from_numpy(row_signs), out, weighted)
        # Integers times powers of two: every sum is exact.
        np.testing.assert_array_equal(out.numpy(), calls * expected)
        np.testing.assert_array_equal(weighted_out.numpy(), calls * expected_weighted)
    on_device(1, torch.from_numpy(row_signs), out)
    np.testing.assert_array_equal(out.numpy(), 3 * expected)
    assert torch.equal(buffer, before)
