"""Test ``trajstore.sketch.window_sum``."""

import numpy as np
import pytest

from trajstore.format.run_spec import RunSpec
from trajstore.format.sketch_size import sketch_fields
from trajstore.format.windows import Windows
from trajstore.sketch.sketch import CODE_VARIANCE, Sketch
from trajstore.sketch.window_sum import MAX_FOLDS, WindowSum, with_window_sums

SIZE, BITS = 3000, 256


def window_sum(seed: int, n_folds: int) -> WindowSum:
    sketch = Sketch(size=SIZE, bits=BITS, seed=seed, window=seed % 5)
    return WindowSum(sketch=sketch, n_folds=n_folds)


def product(total: WindowSum, g: np.ndarray, v: np.ndarray) -> float:
    """Estimate <g, v> from the code of g."""
    folds = total.decode(*total.encode(g))
    rows = total.row_signs[:, None] * total.sketch.fold.signed_rows(v)
    n = total.n_folds
    return float(sum((folds[i] * rows[i::n].sum(0)).sum() for i in range(n)))


@pytest.mark.parametrize("n_folds", [1, 3, 12])
def test_products_are_unbiased_with_the_stated_variance(n_folds: int):
    rng = np.random.default_rng(0)
    g, v = (rng.normal(size=SIZE).astype(np.float32) for _ in range(2))
    errors = [
        product(window_sum(seed, n_folds), g, v) - np.float64(g) @ v
        for seed in range(400)
    ]
    n_rows = window_sum(0, n_folds).sketch.fold.n_rows
    assert n_rows == 12
    # A fold holds n_rows / n_folds rows; a single row does not collide with itself.
    fold = 1 - n_folds / n_rows
    expected = (fold + CODE_VARIANCE) / (BITS * n_folds) * (g @ g) * (v @ v)
    # 400 squares of a normal variable: a standard error of 7 %.
    assert np.mean(np.square(errors)) == pytest.approx(expected, rel=0.25)
    assert abs(np.mean(errors)) < 4 * np.sqrt(expected / 400)


def test_rows_are_dealt_to_the_folds_in_turn():
    total = window_sum(1, 5)
    width = total.sketch.fold.width
    vector = np.zeros(SIZE, np.float32)
    vector[7 * width + 3] = 2.0
    folds = total.fold(vector)
    assert np.flatnonzero(np.abs(folds).sum(1)).tolist() == [7 % 5]
    assert abs(folds[2, 3]) == 2


def windows_of(length: int) -> Windows:
    return Windows(steps_per_epoch=None, reference_every=length, total_steps=None)


def spec_of(side: int, **changes: object) -> RunSpec:
    document: dict[str, object] = {
        "names": ["w"],
        "shapes": [[side, side]],
        "seed": 0,
        **sketch_fields(side * side, 65536),
        "basis": 3,
        "probes": 1024,
        "steps_per_epoch": None,
        "reference_every": None,
        "total_steps": None,
        "exact": False,
    }
    return RunSpec.from_json(document | changes)


@pytest.mark.parametrize(
    ("side", "n_steps", "expected"),
    [
        (3000, 400, (True, MAX_FOLDS)),
        (800, 25, (True, 3)),
        (300, 60, (True, 2)),  # the fold has two rows
        (200, 60, (True, 0)),  # packed: the products are exact enough
        (30, 400, (False, 0)),  # there is a probe for every parameter
        (2000, 7, (False, 0)),  # such short windows have no sums
    ],
)
def test_sums_take_few_of_the_bytes_of_a_window(
    side: int, n_steps: int, expected: tuple[bool, int]
):
    spec = with_window_sums(spec_of(side), windows_of(n_steps), is_sgd=False)
    assert (spec.displacement_sum, spec.window_folds) == expected


@pytest.mark.parametrize(
    ("options", "is_sgd"),
    [({"exact": True}, False), ({"float64": True}, False), ({}, True)],
)
def test_some_recordings_need_no_sums(options: dict[str, object], *, is_sgd: bool):
    spec = with_window_sums(spec_of(800, **options), windows_of(25), is_sgd=is_sgd)
    assert (spec.displacement_sum, spec.window_folds) == (False, 0)
