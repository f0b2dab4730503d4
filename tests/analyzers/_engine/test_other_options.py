"""Test errors of other sketches against sums over pairs of elements, in float64."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from analyzers._engine.other_options import even_crowd, total_variance
from trajstore.format.layout import Layout
from trajstore.format.run_spec import RunSpec
from trajstore.planning.estimate import plan_recording
from trajstore.sketch.sketch import Sketch, sketch_of

LAYOUT = Layout(("a", "b", "c"), ((40, 50), (700,), (3, 3)))


def spec_of(bits: int, window_folds: int = 0) -> RunSpec:
    """Return the options of a recording of three layers."""
    spec = plan_recording(LAYOUT, n_steps=100, sketch_bits=bits).spec
    return replace(spec, window_folds=window_folds)


def buckets(sketch: Sketch) -> np.ndarray:
    """Return the bucket of every parameter, by the definition of the fold."""
    starts = LAYOUT.packed_offsets if sketch.is_packed else LAYOUT.offsets
    places = [s + np.arange(n) for s, n in zip(starts, LAYOUT.sizes, strict=True)]
    return np.concatenate(places) % sketch.fold.width


@pytest.mark.parametrize("bits", [256, 1024, 1 << 14])
def test_crowd_is_the_sum_over_elements_in_the_same_bucket(bits: int):
    rng = np.random.default_rng(bits)
    gradient_sq, residual_sq = rng.random((4, 3)), rng.random(3)
    sketch = sketch_of(spec_of(bits), LAYOUT)
    assert sketch.is_packed == (bits > LAYOUT.n_params)
    layer = np.repeat(np.arange(3), LAYOUT.sizes)
    g, u = gradient_sq / LAYOUT.sizes, residual_sq / LAYOUT.sizes
    bucket = buckets(sketch)
    expected = np.zeros((4, 3))
    for j in range(sketch.fold.width):
        inside = layer[bucket == j]
        for i in inside:
            expected[:, i] += g[:, inside].sum(1) * u[i]
    found = even_crowd(gradient_sq, residual_sq, LAYOUT, sketch)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("n_folds", [1, 2, 3])
def test_variance_of_a_sum_is_that_of_random_signs(n_folds: int):
    """Rows of equal energy, with all signs of the rows enumerated."""
    spec = spec_of(512, window_folds=n_folds)
    fold = sketch_of(spec, LAYOUT).fold
    rng = np.random.default_rng(n_folds)
    n_rows = fold.n_rows
    g, u = rng.normal(size=(2, n_rows, 400))
    g, u = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (g, u))
    errors = []
    for signs in product([-1, 1], repeat=n_rows - 1):
        signed = np.array([1, *signs])[:, None]
        columns = rng.choice([-1, 1], (n_rows, 400))
        total = 0.0
        for i in range(n_folds):
            rows = slice(i, None, n_folds)
            folded = [(signed * columns * x)[rows].sum(0) for x in (g, u)]
            total += folded[0] @ folded[1]
        errors.append(total - (g * u).sum())
    # Without the code, and for vectors of norm 1 in 400 buckets.
    found = np.mean(np.square(errors)) / n_rows**2 * 400
    coded = (np.pi / 2 - 1) / n_folds
    expected = total_variance(spec, LAYOUT) * spec.sketch_numbers - coded
    assert found == pytest.approx(expected, rel=0.2, abs=0.05)
