from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from trajstore.sketch.fold import Fold
from trajstore.sketch.probes import Probes
from trajstore.sketch.signs import Role, random_signs

# Size, buckets and count.
SHAPES = [
    pytest.param(3000, 256, 32, id="many rows in both folds"),
    pytest.param(200, 256, 32, id="one row in the first fold"),
    pytest.param(3000, 64, 64, id="as many probes as buckets"),
    pytest.param(3000, 64, 256, id="more probes than buckets"),
    pytest.param(5, 8, 4, id="tiny"),
]


def make_probes(size: int, buckets: int, count: int, seed: int = 3) -> Probes:
    fold = Fold(size=size, buckets=buckets, seed=seed, column_role=Role.FOLD)
    return Probes(fold=fold, count=count)


def integers(seed: int, shape: Any) -> npt.NDArray[Any]:
    """Return small integers, whose float32 sums are exact in any order."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.integers(-8, 9, shape), np.float32)


def probe_slowly(
    vector: npt.NDArray[Any], seed: int, count: int, width: int, second_width: int
) -> npt.NDArray[Any]:
    """Compute the probe of a vector one element after another, in float64."""
    column_signs = random_signs(10**5, seed=seed, role=Role.FOLD).astype(float)
    row_signs = random_signs(10**4, seed=seed, role=Role.PROBE_ROWS).astype(float)
    second_signs = random_signs(10**5, seed=seed, role=Role.PROBE_FOLD).astype(float)
    probe = np.zeros(count)
    for i, value in enumerate(vector):
        row, bucket = divmod(i, width)
        second_row, j = divmod(bucket, second_width)
        sign = row_signs[row] * column_signs[2 * row + bucket]
        probe[j] += sign * second_signs[2 * second_row + j] * float(value)
    return probe


def test_probe_is_a_fold_of_a_fold():
    vector = integers(0, 3000)
    probe = make_probes(3000, 256, 32)(vector)
    assert probe.dtype == np.float32
    # 251 and 31 are the largest primes below 256 and 32.
    np.testing.assert_array_equal(probe, probe_slowly(vector, 3, 32, 251, 31))


def test_probe_of_a_first_fold_is_the_probe():
    probes, vector = make_probes(3000, 256, 32), integers(1, 3000)
    folded = probes.fold(vector, probes.row_signs)[: probes.fold.width]
    np.testing.assert_array_equal(probes.of_folded(folded), probes(vector))


@pytest.mark.parametrize(("size", "buckets", "count"), SHAPES)
def test_probes_are_linear(size, buckets, count):
    probes = make_probes(size, buckets, count)
    g, v = integers(2, (2, size))
    np.testing.assert_array_equal(probes(3 * g - 2 * v), 3 * probes(g) - 2 * probes(v))
    assert probes(g).any()


@pytest.mark.parametrize(("size", "buckets", "count"), SHAPES)
def test_runs_of_other_seeds_have_other_probes(size, buckets, count):
    vector = integers(3, size)
    probes = [make_probes(size, buckets, count, seed)(vector) for seed in range(20)]
    assert len({probe.tobytes() for probe in probes}) > 15


SHIFTED = [
    pytest.param(70_000, 65_536, 1024, id="usual"),
    pytest.param(9000, 4096, 512, id="short blocks"),
    pytest.param(9000, 4096, 64, id="few probes"),
    pytest.param(9000, 4096, 4096, id="many probes"),
]


def shifted(size: int, buckets: int, count: int) -> Probes:
    fold = Fold(size=size, buckets=buckets, seed=3, column_role=Role.FOLD)
    return Probes(fold=fold, count=count, is_shifted=True)


@pytest.mark.parametrize(("size", "buckets", "count"), SHIFTED)
def test_shifted_probes_equal_a_slow_sum(size, buckets, count):
    probes, vector = shifted(size, buckets, count), integers(4, size)
    folded = probes.fold(vector, probes.row_signs)
    width, expected = probes.bucket_fold.width, np.zeros(count)
    signs = random_signs(10**6, seed=3, role=Role.PROBE_FOLD)
    step = round(0.618034 * width) - 1024
    for bucket in range(probes.fold.width):
        row, column = divmod(bucket, width)
        place = (bucket + step * (bucket // 1024)) % width
        expected[place] += float(signs[2 * row + column]) * float(folded[bucket])
    np.testing.assert_array_equal(probes(vector), expected)


@pytest.mark.parametrize("count", [256, 512, 1024, 2048])
def test_small_tensors_are_spread_over_the_probes(count):
    """Thirty tensors of 30 elements begin at the starts of blocks."""
    probes = shifted(30 * 1024, 65_536, count)
    places = 1024 * np.arange(30)[:, None] + np.arange(30)
    hits = np.bincount(probes.probe_of_bucket[places.ravel()], minlength=count)
    fair = 900 / probes.bucket_fold.width
    # Random places would have pairs of elements in a probe in proportion to fair^2.
    assert hits.max() <= 2 * fair + 2
    assert (hits * (hits - 1)).sum() < 1.2 * 900 * fair
    without = make_probes(30 * 1024, 65_536, count).probe_of_bucket[places.ravel()]
    crowded = np.bincount(without, minlength=count)
    if count == 1024:
        assert (crowded * (crowded - 1)).sum() > 5 * 900 * fair


@pytest.mark.parametrize("correlation", [0.0, 0.6, 1.0])
def test_inner_products_are_kept_on_average_with_the_stated_variance(correlation):
    size, buckets, count, n_runs = 4000, 1024, 64, 2000
    rng = np.random.default_rng(4)
    g, noise = rng.standard_normal((2, size))
    v = correlation * g + np.sqrt(1 - correlation**2) * noise
    g, v = (x.astype(np.float32) for x in (g, v))
    lengths = np.linalg.norm(g) * np.linalg.norm(v)
    cosine = float(g.astype(float) @ v / lengths)
    estimates = np.empty(n_runs)
    for seed in range(n_runs):
        probes = make_probes(size, buckets, count, seed)
        estimates[seed] = probes(g).astype(float) @ probes(v) / lengths
    # The standard deviation in a run is at most sqrt(2 / 64) = 0.18.
    assert abs(estimates.mean() - cosine) < 4 * estimates.std() / np.sqrt(n_runs)
    # The variances of the two folds, with 4 rows of 1021 and 17 rows of 61, add up. The stated
    # (1 + cos^2) / 64 is within 5 % of the sum. Four standard errors of a variance are 13 %.
    variance = np.square(estimates - cosine).mean()
    exact = (3 / 4 / 1021 + 16 / 17 / 61) * (1 + cosine**2)
    assert variance == pytest.approx(exact, rel=4 * np.sqrt(2 / n_runs))
    assert exact == pytest.approx((1 + cosine**2) / count, rel=0.06)


@pytest.mark.parametrize("is_shifted", [False, True])
@pytest.mark.parametrize(("size", "buckets", "count"), [*SHAPES, *SHIFTED[1:]])
def test_torch_probes_like_numpy(size, buckets, count, is_shifted):
    torch = pytest.importorskip("torch")
    from trajstore.sketch_torch.fold import FoldOnDevice, Span
    from trajstore.sketch_torch.probes import ProbesOnDevice

    probes = make_probes(size, buckets, count)
    if is_shifted:
        probes = shifted(size, buckets, count)
    device = torch.device("cpu")
    buffer = torch.zeros(2, -(-size // 1024) * 1024)
    fold = FoldOnDevice(probes.fold, [buffer], [Span(0, 0, size)])
    on_device = ProbesOnDevice(probes, 2, device)
    out = torch.zeros(2, count)
    for seed in (5, 6):
        vectors = integers(seed, (2, size))
        buffer[:, :size] = torch.from_numpy(vectors)
        fold(0, on_device.row_signs, on_device.folds)
        on_device.write(out)
        expected = np.stack([probes(vector) for vector in vectors])
        np.testing.assert_array_equal(out.numpy(), expected)
