"""Compare ``trajstore.sketch.compiled`` with the decoder in NumPy."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from trajstore.sketch import compiled
from trajstore.sketch import sketch as decoder
from trajstore.sketch.signs import Role, random_bytes
from trajstore.sketch.sketch import Sketch

SEED = 3


@pytest.mark.parametrize("bits", [512, 1024, 2048, 4096, 65536])
@pytest.mark.parametrize("is_mixed", [False, True])
def test_compiled_loops_decode_the_same(
    bits: int, is_mixed: bool, monkeypatch: pytest.MonkeyPatch
):
    sketch = Sketch(size=5 * bits + 7, bits=bits, seed=SEED, is_mixed=is_mixed)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (5, bits // 8), np.uint8)
    scales = np.array([[1.0], [0.0], [np.nan], [1e-30], [1e30]], np.float32)
    codes.flags.writeable = scales.flags.writeable = False
    steps = np.array([0, 1, 7, 2**40, 5])
    expected = sketch.decode(codes, scales, steps)
    out = np.empty((5, sketch.fold.width), np.float32)
    monkeypatch.setattr(decoder, "COMPILED_FROM", 5 * bits)
    actual = sketch.decode(codes, scales, steps, out=out, n_sketches=5)
    assert actual.buckets is out
    np.testing.assert_array_equal(actual.row_signs, expected.row_signs)
    for decoded, known in zip(out, expected.buckets, strict=True):
        largest = np.abs(known).max()
        np.testing.assert_allclose(decoded, known, rtol=0, atol=1e-6 * largest)
    # The sums of other orders differ in their last digits, so the loops were used.
    assert (out != expected.buckets).any()


@pytest.mark.parametrize(
    ("bits", "changes"),
    [(256, {}), (512, {"bits_per_number": 2}), (1 << 17, {"is_mixed": True})],
    ids=["short", "several bits", "several blocks"],
)
def test_other_sketches_are_decoded_in_numpy(
    bits: int, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    sketch = Sketch(size=2 * bits, bits=bits, seed=SEED, **changes)
    codes = np.random.default_rng(0).integers(0, 256, (2, bits // 8), np.uint8)
    arguments = codes, np.ones((2, sketch.n_blocks), np.float32), np.arange(2)
    expected = sketch.decode(*arguments)
    monkeypatch.setattr(decoder, "COMPILED_FROM", 0)
    actual = sketch.decode(*arguments, n_sketches=2)
    np.testing.assert_array_equal(actual.buckets, expected.buckets)


@pytest.mark.parametrize("seed", [0, 3, 2**64 - 1])
@pytest.mark.parametrize("step", [0, 2**40])
def test_compiled_loops_draw_the_same_words(seed: int, step: int):
    words = np.empty(12, np.uint64)
    compiled.random_words(np.uint64(seed), np.uint64(Role.STEP), np.uint64(step), words)
    drawn = words.astype("<u8").view(np.uint8)
    expected = random_bytes(96, seed=seed, role=Role.STEP, step=step)
    np.testing.assert_array_equal(drawn, expected)
