"""Compare ``analyzers._engine.vectors.energies`` with enumeration over all elements."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")

from analyzers._engine.arrays.crowding import layer_pieces
from analyzers._engine.vectors import energies
from analyzers._engine.vectors.energies import (
    Weights,
    energy_sums,
    gradient_energies,
    in_intervals,
    spread,
    uneven_weights,
    window_total,
)
from trajstore.format.layout import BLOCK
from trajstore.reading.run import Run, open_run
from trajstore.recording.recorder import Recorder

FloatArray = npt.NDArray[np.floating[Any]]

SHAPES = {"embedding": (90, 40), "bias": (33,), "matrix": (40, 41)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Record gradients whose energy is mostly in a part of the embedding."""
    path = tmp_path_factory.mktemp("energies") / "run.zarr"
    generator = torch.Generator().manual_seed(0)
    parameters = {n: torch.nn.Parameter(torch.zeros(s)) for n, s in SHAPES.items()}
    optimizer = torch.optim.Adam(parameters.values(), lr=0.1)
    options: Any = {"sketch_bits": 1024, "probes": 16, "reference_every": 20}
    with Recorder(path, parameters, optimizer, **options) as recorder:
        for _ in range(41):
            for parameter in parameters.values():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            gradient = parameters["embedding"].grad
            assert gradient is not None
            gradient[:30] *= 10
            optimizer.step()
        recorder.flush()
    return open_run(path)


def of_elements(density: FloatArray, n: int) -> FloatArray:
    """Return the values of blocks for each of n elements."""
    values = np.zeros(n)
    repeated = np.repeat(density, BLOCK)
    values[: len(repeated)] = repeated
    return values


def of_rows(weights: Weights, n_rows: int) -> FloatArray:
    """Return the weights of all elements, (row, bucket)."""
    n, width = weights.by_bucket.shape
    own = of_elements(weights.by_block, n_rows * width)
    own = own.reshape(n_rows, width)
    return np.asarray(weights.by_bucket[np.arange(n_rows) % n] - own)


def pieces(run: Run, rows: slice) -> list[tuple[int, int, slice]]:
    layout, width = run.layout, run.stored.sketch.fold.width
    return layer_pieces(rows, layout.offsets, layout.sizes, width)


def places(run: Run) -> tuple[Any, Any]:
    """Return the row and the bucket of every element."""
    layout, width = run.layout, run.stored.sketch.fold.width
    row, bucket = np.divmod(np.arange(layout.size), width)
    return row, bucket


def test_energies_follow_the_blocks(run: Run):
    window = run.n_windows - 2
    steps = slice(*(int(run.windows[n].values[window]) for n in ("start", "stop")))
    found = spread(run, window, gradient_energies(run, window, steps))
    assert found is not None
    counts = run.layout.elements_of_block
    np.testing.assert_allclose(found.by_block @ counts, found.total, rtol=1e-6)
    np.testing.assert_allclose(found.even @ counts, found.total, rtol=1e-6)
    np.testing.assert_allclose(found.steps.mean(), 1, rtol=1e-6)
    # The first 30 of 90 rows of the embedding, 1200 elements, have 100 times the energy.
    [first, second, *_] = found.by_block[:4] / found.by_block[2]
    assert first == pytest.approx(100, rel=0.1)
    assert second == pytest.approx(1 + 99 * 176 / 1024, rel=0.1)


def test_energies_in_intervals_are_sums_over_elements(run: Run):
    density = np.random.default_rng(0).random(len(run.layout.layer_of_block))
    row, bucket = places(run)
    width = run.stored.sketch.fold.width
    is_used = np.arange(run.layout.size) % BLOCK < np.repeat(
        run.layout.elements_of_block, BLOCK
    )
    values = np.repeat(density, BLOCK) * is_used
    np.testing.assert_allclose(
        np.repeat(*in_intervals(run, density)), np.bincount(bucket, values, width)
    )
    odd = np.arange(1, row.max() + 1, 2)
    np.testing.assert_allclose(
        np.repeat(*in_intervals(run, density, odd)),
        np.bincount(bucket, values * (row % 2), width),
    )


def test_weights_of_uneven_energies_are_the_terms_of_the_variance(run: Run):
    """sum_j (sum_b E_bj) (sum_b u_bj^2) - sum_bj E_bj u_bj^2, uneven minus even."""
    window, width = run.n_windows - 2, run.stored.sketch.fold.width
    steps = slice(*(int(run.windows[n].values[window]) for n in ("start", "stop")))
    found = spread(run, window, gradient_energies(run, window, steps))
    assert found is not None
    n_rows = run.stored.sketch.fold.n_rows
    u_sq = np.zeros(n_rows * width)
    for offset, size in zip(run.layout.offsets, run.layout.sizes, strict=True):
        u_sq[offset : offset + size] = np.random.default_rng(1).random(size)
    expected = 0.0
    for sign, density in ((1, found.by_block), (-1, found.even)):
        energy = of_elements(density, n_rows * width)
        energy[u_sq == 0] = 0
        per_bucket = energy.reshape(-1, width).sum(0) @ u_sq.reshape(-1, width).sum(0)
        expected += sign * (per_bucket - energy @ u_sq)
    weights = uneven_weights(run, found)
    assert weights is not None
    actual = (of_rows(weights, n_rows).reshape(-1) * u_sq).sum()
    assert actual == pytest.approx(expected, rel=1e-4)


def test_weights_of_the_total_collide_only_within_a_fold(run: Run):
    window, fold = run.n_windows - 2, run.stored.sketch.fold
    steps = slice(*(int(run.windows[n].values[window]) for n in ("start", "stop")))
    found = spread(run, window, gradient_energies(run, window, steps))
    assert found is not None
    total = window_total(run, window, found)
    assert total is not None
    n = run.spec.window_folds
    assert 1 < n < fold.n_rows
    # An element shares its bucket with the elements of every n-th row but its own.
    density = total.weights.by_block
    energy = of_elements(density, fold.n_rows * fold.width)
    is_used = np.zeros(fold.n_rows * fold.width)
    for offset, size in zip(run.layout.offsets, run.layout.sizes, strict=True):
        is_used[offset : offset + size] = 1
    rows = (energy * is_used).reshape(-1, fold.width)
    others = np.stack([rows[i % n :: n].sum(0) - rows[i] for i in range(len(rows))])
    coded = of_rows(total.weights, fold.n_rows) - others
    used = is_used.reshape(rows.shape) > 0
    for i in range(n):
        # What is left is the part of the code, the same for all elements of a fold.
        rest = coded[i::n][used[i::n]]
        assert rest.min() > 0
        np.testing.assert_allclose(rest, rest.mean(), rtol=1e-3)


@pytest.mark.parametrize("cut", [3, 4])
def test_sums_over_parts_of_the_rows_are_sums_over_all_elements(
    run: Run, cut: int, monkeypatch: pytest.MonkeyPatch
):
    # A batch holds two rows.
    monkeypatch.setattr(energies, "SQUARES", 2 * run.stored.sketch.fold.width)
    window, fold, layout = run.n_windows - 2, run.stored.sketch.fold, run.layout
    n_rows, width = fold.n_rows, fold.width
    steps = slice(*(int(run.windows[n].values[window]) for n in ("start", "stop")))
    found = spread(run, window, gradient_energies(run, window, steps))
    assert found is not None
    uneven, total = uneven_weights(run, found), window_total(run, window, found)
    assert uneven is not None
    assert total is not None
    layer = np.full(n_rows * width, len(SHAPES))
    for i, (offset, size) in enumerate(zip(layout.offsets, layout.sizes, strict=True)):
        layer[offset : offset + size] = i
    normal = np.random.default_rng(2).standard_normal(n_rows * width)
    matrix = np.float32(normal * (layer < len(SHAPES))).reshape(n_rows, width)

    def by_layer(values: FloatArray) -> FloatArray:
        sums = np.bincount(layer, values.reshape(-1))
        return sums[: len(SHAPES)].astype(np.float64)

    squares = matrix.astype(float) ** 2
    folds = total.folds[np.arange(n_rows) % len(total.folds)]
    estimated = total.row_signs[:, None].astype(float) * folds
    parts = [
        energy_sums(run, window, found, rows, matrix[rows], pieces(run, rows))
        for rows in (slice(0, cut), slice(cut, n_rows))
    ]
    by_interval = np.sum([part.by_interval.sum(1) for part in parts], axis=0)
    np.testing.assert_allclose(by_interval, by_layer(squares), rtol=1e-6)
    actual = np.sum([part.uneven for part in parts], axis=0)
    terms = of_rows(uneven, n_rows) * squares
    scale = by_layer(np.abs(terms)).max()
    np.testing.assert_allclose(actual, by_layer(terms), atol=1e-6 * scale)
    product, variance = np.sum([part.window_sum for part in parts], axis=0)
    terms = matrix * estimated
    scale = by_layer(np.abs(terms)).max()
    np.testing.assert_allclose(product, by_layer(terms), atol=1e-6 * scale)
    expected = by_layer(of_rows(total.weights, n_rows) * squares)
    np.testing.assert_allclose(variance, expected, rtol=1e-5)
