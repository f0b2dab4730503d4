from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from trajstore.sketch.rotation import rotate
from trajstore.sketch.signs import Role, random_signs
from trajstore.sketch.sketch import CODE_VARIANCE, FOLD_VARIANCE, Sketch

Array = npt.NDArray[Any]


def sparse(size: int, *values: float) -> Array:
    vector = np.zeros(size)
    vector[np.random.default_rng(1).choice(size, len(values), replace=False)] = values
    return vector


def heavy_columns(size: int, width: int) -> Array:
    """Return a matrix in which 4 columns have all but about a thousandth of the energy."""
    matrix = np.random.default_rng(2).standard_normal((-(-size // width), width))
    matrix[:, 4:] *= np.sqrt(1e-3 * 4 / (width - 4))
    return np.ravel(matrix)[:size]


def one_over_i(size: int) -> Array:
    return np.asarray(1 / (1 + np.random.default_rng(3).permutation(size)))


def half_in_one(size: int) -> Array:
    vector = np.asarray(normal(size) / np.sqrt(size))
    vector[size // 3] = 1
    return vector


def normal(size: int) -> Array:
    return np.random.default_rng(5).standard_normal(size)


def student(size: int) -> Array:
    return np.random.default_rng(6).standard_t(2, size)


# For sketches of 1024 bits, whose folds have rows of 1021.
CONCENTRATED = [
    pytest.param(sparse(800, 1), id="one entry"),
    pytest.param(sparse(800, 1, 0.5), id="two entries"),
    pytest.param(sparse(800, 1, -0.7, 0.3), id="three entries"),
    pytest.param(sparse(9000, 1, 0.5), id="two entries in two of many rows"),
    pytest.param(half_in_one(800), id="half the energy in one entry"),
    pytest.param(one_over_i(800), id="1/i in one row"),
    pytest.param(one_over_i(9000), id="1/i in many rows"),
]
SPREAD = [
    pytest.param(normal(800), id="normal, shorter than a row"),
    pytest.param(normal(1021), id="normal, one row"),
    pytest.param(normal(1030), id="normal, little more than a row"),
    pytest.param(normal(4 * 1021), id="normal, whole rows"),
    pytest.param(normal(30000), id="normal, many rows"),
    pytest.param(student(800), id="Student t, one row"),
    pytest.param(student(9000), id="Student t, many rows"),
    pytest.param(heavy_columns(9000, 512), id="heavy columns of 512"),
    pytest.param(heavy_columns(9000, 1024), id="heavy columns of 1024"),
]
# For sketches of 65536 bits.
LARGE = [
    pytest.param(sparse(50000, 1, 0.5), id="two entries"),
    pytest.param(sparse(150001, 1, -0.7, 0.3), id="three entries"),
    pytest.param(one_over_i(50000), id="1/i in one row"),
    pytest.param(half_in_one(150001), id="half the energy in one entry"),
    pytest.param(student(150001), id="Student t"),
    pytest.param(heavy_columns(150001, 512), id="heavy columns of 512"),
    pytest.param(heavy_columns(150001, 1024), id="heavy columns of 1024"),
]

# Size and bits. Transforms of a power of four numbers do not round small integers.
SHAPES = [
    pytest.param(500, 1024, id="one short row"),
    pytest.param(2000, 1024, id="two rows"),
    pytest.param(30000, 256, id="many rows"),
    pytest.param(5000, 8, id="8 bits"),
    pytest.param(9000, 2048, id="2048 bits"),
    pytest.param(200000, 65536, id="65536 bits"),
    pytest.param(300000, 131072, id="two blocks"),
]


class Estimates(NamedTuple):
    """Estimates of <g, v> for several vectors v, in units of |g| |v|, (step, v)."""

    values: Array
    exact: Array

    @property
    def bias(self) -> Array:
        return np.asarray(np.abs(self.values.mean(0) - self.exact))

    @property
    def standard_error(self) -> Array:
        return np.asarray(self.values.std(0, ddof=1) / np.sqrt(len(self.values)))


def directions(g: Array) -> Array:
    """Return unit vectors to multiply a gradient with: g, g with noise, and parts of g.

    If there is only one row, the scale makes the product with g itself unbiased; only a product
    with a single entry could be biased.
    """
    rng = np.random.default_rng(7)
    noise = rng.standard_normal(len(g))
    by_size = np.argsort(-np.abs(g))
    first, second = np.zeros((2, len(g)))
    first[by_size[0]], second[by_size[1]] = 1, 1
    half = np.where(rng.integers(0, 2, len(g)), g, 0)
    half[by_size[:2]] = g[by_size[0]], 0
    vectors = np.stack([
        g, g + noise * np.linalg.norm(g) / np.linalg.norm(noise), first, second, half
    ])  # fmt: skip
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def estimate(
    sketches_and_steps: Iterable[tuple[Sketch, int]], g: Array, vectors: Array
) -> Estimates:
    """Encode and decode one step at a time, and multiply with the vectors."""
    g = (g / np.linalg.norm(g)).astype(np.float32)
    values = []
    for sketch, step in sketches_and_steps:
        signs, scales = sketch.encode(g, step)
        buckets, row_signs = sketch.decode(signs[None], scales[None], np.array([step]))
        signed = np.stack([sketch.fold.signed_rows(v) for v in vectors])
        values.append((row_signs @ signed)[:, 0] @ buckets[0])
    return Estimates(np.array(values, float), vectors.astype(float) @ g)


def within_one_run(
    bits: int, g: Array, vectors: Array, n_steps: int, seed: int = 0
) -> Estimates:
    """Like `estimate`, but decode all steps of a run in one batch."""
    sketch = Sketch(size=len(g), bits=bits, seed=seed)
    g = (g / np.linalg.norm(g)).astype(np.float32)
    codes = [sketch.encode(g, step) for step in range(n_steps)]
    signs, scales = map(np.stack, zip(*codes, strict=True))
    buckets, row_signs = sketch.decode(signs, scales, np.arange(n_steps))
    values = [
        np.einsum("kj,kj->k", buckets, row_signs @ sketch.fold.signed_rows(v))
        for v in vectors
    ]
    return Estimates(np.stack(values, 1).astype(float), vectors.astype(float) @ g)


@pytest.mark.parametrize("g", [*CONCENTRATED, *SPREAD])
def test_estimates_are_unbiased_over_runs(g):
    # Runs of one step each: all signs are fresh.
    runs = [(Sketch(size=len(g), bits=1024, seed=seed), 5) for seed in range(300)]
    estimates = estimate(runs, g, directions(g))
    # The bias that remains after two rounds is 0.3 % for two entries and 1024 bits, and is
    # proportional to 1 / sqrt(bits).
    tolerance = 0.003 + 4 * estimates.standard_error
    assert (estimates.bias < tolerance).all()


@pytest.mark.parametrize("g", [*CONCENTRATED, *SPREAD])
def test_estimates_are_unbiased_over_the_steps_of_a_run(g):
    estimates = within_one_run(4096, g, directions(g), n_steps=400)
    tolerance = np.maximum(0.003, 4 * estimates.standard_error)
    assert (estimates.bias < tolerance).all()


@pytest.mark.parametrize("g", LARGE)
def test_full_sketches_are_within_half_a_percent(g):
    estimates = within_one_run(65536, g, directions(g), n_steps=10)
    tolerance = np.maximum(0.005, 4 * estimates.standard_error)
    assert (estimates.bias < tolerance).all()
    # The standard errors are small enough for a meaningful test.
    assert (estimates.standard_error[1:] < 0.003).all()


@pytest.mark.parametrize("n_rows", [1, 2, 5, 30])
def test_variance_is_as_predicted(n_rows):
    """The variance is (1 - 1 / B + 0.571) / m for vectors of norm 1 that fill B rows."""
    bits, n = 256, 2000
    sketch = Sketch(size=251 * n_rows, bits=bits, seed=8)
    rng = np.random.default_rng(n_rows)
    squares = np.empty(n)
    for step in range(n):
        # The vectors are also fresh, because with few rows the variance depends on them.
        g, v = rng.standard_normal((2, sketch.size)).astype(np.float32)
        lengths = np.linalg.norm(g) * np.linalg.norm(v)
        signs, scales = sketch.encode(g, step)
        buckets, row_signs = sketch.decode(signs[None], scales[None], np.array([step]))
        result = float(buckets[0] @ (row_signs[0] @ sketch.fold.signed_rows(v)))
        squares[step] = ((result - float(g.astype(float) @ v)) / lengths) ** 2
    predicted = (FOLD_VARIANCE * (1 - 1 / n_rows) + CODE_VARIANCE) / bits
    standard_error = squares.std() / np.sqrt(n)
    # Only 251 of 256 buckets are filled, so the variance of the fold is 2 % larger.
    assert abs(squares.mean() - predicted) < 4 * standard_error + 0.02 * predicted
    assert standard_error < 0.05 * predicted
    assert pytest.approx(0.571, abs=5e-4) == CODE_VARIANCE


def test_errors_of_different_steps_are_independent():
    g, v = np.random.default_rng(9).standard_normal((2, 251 * 30))
    v = (v / np.linalg.norm(v)).astype(np.float32)
    n = 2000
    errors = within_one_run(256, g, v[None], n).values[:, 0]
    errors -= errors.mean()
    for lag in (1, 2, 7, 64):
        correlation = np.mean(errors[lag:] * errors[:-lag]) / errors.var()
        assert abs(correlation) < 4 / np.sqrt(n)


@pytest.mark.parametrize("size", [40, 1000])
def test_sketch_is_the_composition_of_the_formulas(size):
    linalg = pytest.importorskip("scipy.linalg")
    bits, seed, step, width = 64, 10, 3, 61
    n_rows = -(-size // width)
    g = np.random.default_rng(size).standard_normal(size).astype(np.float32)

    columns = random_signs(width + 2 * n_rows, seed=seed, role=Role.FOLD)
    fresh = random_signs(bits + n_rows, seed=seed, role=Role.STEP, step=step)
    first, rows = fresh[:bits].astype(float), fresh[bits:]
    second = np.concatenate([first[bits // 2 :], first[: bits // 2]])
    H = linalg.hadamard(bits) / np.sqrt(bits)
    rotation = H @ np.diag(second) @ H @ np.diag(first)
    y = np.zeros(bits)
    for i, value in enumerate(g):
        row, column = divmod(i, width)
        y[column] += float(rows[row] * columns[2 * row + column]) * float(value)
    z = rotation @ y
    scale = np.sum(z * z) / np.sum(np.abs(z))

    sketch = Sketch(size=size, bits=bits, seed=seed)
    signs, scales = sketch.encode(g, step)
    np.testing.assert_array_equal(np.unpackbits(signs), z >= 0)
    np.testing.assert_allclose(scales, [scale], rtol=1e-6)
    buckets, row_signs = sketch.decode(
        np.stack([signs, ~signs]), np.stack([scales, 2 * scales]), np.array([step] * 2)
    )
    decoded = rotation.T @ (scale * np.where(z >= 0, 1, -1))
    np.testing.assert_allclose(buckets[0], decoded[:width], atol=1e-5 * scale * 8)
    np.testing.assert_allclose(buckets[1], -2 * decoded[:width], atol=2e-5 * scale * 8)
    np.testing.assert_array_equal(row_signs, [rows, rows])


def test_tensors_add_up():
    # Estimates for parts of v add up to the estimate for v, because only g is coded.
    sketch = Sketch(size=3000, bits=1024, seed=11)
    g, v = np.random.default_rng(12).standard_normal((2, 3000)).astype(np.float32)
    signs, scales = sketch.encode(g, 4)
    buckets, row_signs = sketch.decode(signs[None], scales[None], np.array([4]))
    whole = buckets[0] @ (row_signs[0] @ sketch.fold.signed_rows(v))
    head, tail = v.copy(), v.copy()
    head[1300:], tail[:1300] = 0, 0
    parts = [
        buckets[0] @ (row_signs[0] @ sketch.fold.signed_rows(x)) for x in (head, tail)
    ]
    assert sum(parts) == pytest.approx(whole, abs=1e-5 * 3000)


def test_a_step_with_nan_decodes_to_nan_and_leaves_others_alone():
    sketch = Sketch(size=3000, bits=1024, seed=13)
    g = normal(3000).astype(np.float32)
    codes = [sketch.encode(g, step) for step in range(3)]
    broken = g.copy()
    broken[2999] = np.nan
    codes[1] = sketch.encode(broken, 1)
    signs, scales = map(np.stack, zip(*codes, strict=True))
    assert np.isnan(scales[:, 0]).tolist() == [False, True, False]
    buckets, _ = sketch.decode(signs, scales, np.arange(3))
    assert np.isnan(buckets[1]).all()
    assert np.isfinite(buckets[[0, 2]]).all()


def test_a_zero_gradient_decodes_to_zeros():
    sketch = Sketch(size=3000, bits=1024, seed=14)
    signs, scales = sketch.encode(np.zeros(3000, np.float32), 0)
    buckets, _ = sketch.decode(signs[None], scales[None], np.array([0]))
    assert not buckets.any()


@pytest.mark.parametrize(("size", "bits"), SHAPES)
def test_torch_sketches_like_numpy(size, bits):
    torch = pytest.importorskip("torch")
    from trajstore.format.layout import BLOCK, Layout
    from trajstore.sketch_torch.sketch import SketchOnDevice
    from trajstore.tracking.placement import unsharded

    rng = np.random.default_rng(size)
    sketch = Sketch(size=size, bits=bits, seed=15)
    placement = unsharded(Layout(("x",), ((size,),)))
    buffer = torch.zeros(2, placement.size)
    on_device = SketchOnDevice(sketch, [buffer], placement.spans, np.arange(size))
    weights = rng.choice(np.array([0.5, 1, 2], np.float32), buffer.shape[1] // BLOCK)
    by_element = np.repeat(weights, BLOCK)[:size]
    for step in (0, 77):
        vectors = rng.integers(-8, 9, (2, size)).astype(np.float32)
        buffer[:, :size] = torch.from_numpy(vectors)
        signs = torch.full((bits // 8,), 77, dtype=torch.uint8)
        scales = torch.full((sketch.n_blocks,), 77.0)
        fold_signs = rng.choice(np.array([-1, 1], np.float32), sketch.fold.n_rows)
        folds = torch.zeros(2, bits)
        on_device(
            0,
            step,
            torch.from_numpy(weights),
            fold_signs=torch.from_numpy(fold_signs),
            folds=folds,
        )
        on_device.encode(signs=signs, scales=scales)
        weighted = vectors[0] * by_element
        expected_signs, expected_scales = sketch.encode(weighted, step)
        np.testing.assert_allclose(scales.numpy(), expected_scales, rtol=2e-6)
        np.testing.assert_array_equal(
            folds.numpy(), [sketch.fold(vector, fold_signs) for vector in vectors]
        )
        different = np.unpackbits(signs.numpy() ^ expected_signs).astype(bool)
        if bits in {256, 1024, 65536}:
            assert not different.any()
        else:
            # Signs may differ only for numbers that are 0 up to rounding.
            first, rows = sketch.step_signs(step)
            folded = sketch.fold(weighted, rows)
            rotated = np.abs(rotate(folded, first))
            assert (rotated[different] < 1e-5 * rotated.mean()).all()
            assert different.mean() < 0.02
