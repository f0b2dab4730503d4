"""References are found by every name that a user may give them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.trajstore.handmade import small_spec
from trajstore import Run, iterate, open_run
from trajstore.format.arrays import METRIC_BLOCK, step_arrays
from trajstore.format.layout import BLOCK
from trajstore.format.run_spec import RunSpec
from trajstore.reading.target import ReferencePoint, reference_point
from trajstore.store.writer import Window, Writer

Array = npt.NDArray[Any]
Tensors = dict[str, Array]

STEPS_PER_EPOCH = 4
SHAPES: dict[str, tuple[int, ...]] = {"weight": (40, 30), "bias": (3,), "scale": ()}


def spec_of(shapes: Mapping[str, tuple[int, ...]]) -> RunSpec:
    return small_spec(shapes, basis=1, steps_per_epoch=STEPS_PER_EPOCH)


def random_tensors(
    seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> Tensors:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=s).astype("f4") for name, s in shapes.items()}


def flat(tensors: Tensors, names: Mapping[str, Any] = SHAPES) -> Array:
    """Lay tensors out one behind the other, each filled up to whole blocks."""
    parts = [np.ravel(tensors[name]) for name in names]
    return np.concatenate([np.pad(part, (0, -part.size % BLOCK)) for part in parts])


def write_run(
    path: Path,
    *,
    n_steps: int = 0,
    window_starts: tuple[int, ...] = (),
    snapshots: Mapping[str, tuple[int, Tensors]] | None = None,
    final: Tensors | None = None,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
) -> Run:
    """Write a run whose windows have the references `coded_reference` of their place."""
    spec = spec_of(shapes)
    writer, size = Writer(path, spec), flat(random_tensors(0, shapes), shapes).size
    for c, start in enumerate(window_starts):
        codes, scales = window_code(c, size)
        keyframe = np.zeros(size, "f4") if c == 0 else None
        ones = np.ones(len(shapes), "f4")
        arrival, probes = np.ones((len(shapes), 2), "f4"), np.zeros(8)
        writer.append_window(
            Window(start, codes, scales, ones, arrival, probes, keyframe)
        )
    if n_steps:
        arrays = step_arrays(spec, size=size, n_metrics=METRIC_BLOCK, n_blocks=1)
        rows = {
            name: np.zeros((n_steps, *array.inner), array.dtype)
            for name, array in arrays.items()
            if name != "scalars"
        }
        steps = np.arange(n_steps, dtype="i4")
        rows["epoch"], rows["iteration"] = divmod(steps, STEPS_PER_EPOCH)
        writer.steps.append(rows, [{}] * n_steps)
    for name, (step, tensors) in (snapshots or {}).items():
        writer.write_snapshot(name, step, flat(tensors, shapes).__getitem__)
    if final is not None:
        writer.write_final(flat(final, shapes).__getitem__, status="complete")
    writer.commit()
    writer.close()
    return open_run(path)


def window_code(c: int, size: int) -> tuple[Array, Array]:
    codes = np.random.default_rng(c).integers(-127, 128, size, np.int8)
    return codes, np.full(size // BLOCK, 0.5, "f4")


def coded_reference(c: int, size: int) -> Array:
    """Return the sum of the coded differences; halves of integers add up exactly."""
    differences = [0.5 * window_code(i, size)[0].astype("f4") for i in range(1, c + 1)]
    return sum(differences, np.zeros(size, "f4"))


def values(point: ReferencePoint, size: int) -> Array:
    """Read a point as a whole; and in parts, which must agree."""
    whole = point.read(slice(0, size))
    parts = [point.read(slice(i, i + BLOCK)) for i in range(0, size, BLOCK)]
    np.testing.assert_array_equal(np.concatenate(parts), whole, strict=True)
    assert whole.dtype == np.float32
    return whole


FINAL, WARM, COLD = random_tensors(1), random_tensors(2), random_tensors(3)
SIZE = flat(FINAL).size


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of 4 epochs; references begin the epochs 0, 1 and 3, but not 2."""
    return write_run(
        tmp_path_factory.mktemp("reference") / "run.zarr",
        n_steps=14,
        window_starts=(0, 2, 4, 10, 12),
        snapshots={"warm": (5, WARM), "cold": (7, COLD)},
        final=FINAL,
    )


# What may be given


def test_final_is_the_last_iterate(run: Run):
    point = reference_point(run, "final")
    assert point.label == "final"
    assert "float32" in point.note
    np.testing.assert_array_equal(values(point, SIZE), flat(FINAL), strict=True)


@pytest.mark.parametrize(
    ("name", "step", "tensors"), [("warm", 5, WARM), ("cold", 7, COLD)]
)
def test_another_string_is_a_snapshot(run: Run, name: str, step: int, tensors: Tensors):
    point = reference_point(run, name)
    assert point.label == f"snapshot {name}"
    assert point.note == f"snapshot {name!r} before step {step}, in float32"
    np.testing.assert_array_equal(values(point, SIZE), flat(tensors), strict=True)


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8])
@pytest.mark.parametrize(("epoch", "window"), [(0, 0), (1, 2), (3, 4)])
def test_an_integer_is_an_epoch(run: Run, epoch: int, window: int, kind: type):
    point = reference_point(run, kind(epoch))
    assert point.label == f"epoch {epoch}"
    assert f"start of epoch {epoch}: a lossy code" in point.note
    expected = coded_reference(window, SIZE)
    np.testing.assert_array_equal(values(point, SIZE), expected, strict=True)


def test_another_run_is_its_final_iterate(run: Run, tmp_path: Path):
    other = write_run(tmp_path / "other.zarr", final=COLD)
    point = reference_point(run, other)
    assert point.label == "final of other.zarr"
    assert "other.zarr" in point.note
    np.testing.assert_array_equal(values(point, SIZE), flat(COLD), strict=True)


def test_another_run_may_hold_its_parameters_in_another_order(run: Run, tmp_path: Path):
    order = {"extra": (5000,), "scale": (), "bias": (3,), "weight": (40, 30)}
    tensors = random_tensors(4, order)
    other = write_run(tmp_path / "other.zarr", final=tensors, shapes=order)
    point = reference_point(run, other)
    np.testing.assert_array_equal(values(point, SIZE), flat(tensors), strict=True)


def test_a_mapping_gives_arrays_by_name_in_any_order(run: Run):
    given = dict(reversed(WARM.items())) | {"running_mean": np.ones(7), "n": 3}
    point = reference_point(run, given)
    assert point.label == "given"
    np.testing.assert_array_equal(values(point, SIZE), flat(WARM), strict=True)


def test_a_mapping_may_hold_anything_like_an_array(run: Run):
    given = {k: v.astype(float).tolist() for k, v in WARM.items()}
    point = reference_point(run, given)
    np.testing.assert_array_equal(values(point, SIZE), flat(WARM), strict=True)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_a_mapping_may_hold_tensors(run: Run, dtype: str):
    torch = pytest.importorskip("torch")
    given = {
        name: torch.tensor(array).to(getattr(torch, dtype)).requires_grad_()
        for name, array in WARM.items()
    }
    expected = {k: v.detach().to(torch.float64).numpy() for k, v in given.items()}
    found = values(reference_point(run, given), SIZE)
    np.testing.assert_array_equal(found, flat(expected).astype("f4"), strict=True)


def test_the_arrays_of_a_mapping_are_copied(run: Run):
    given = random_tensors(5)
    point = reference_point(run, given)
    given["bias"][:] = 0
    np.testing.assert_array_equal(values(point, SIZE), flat(random_tensors(5)))


def test_recorded_references_are_found(example_run: Path):
    run = open_run(example_run)
    size = run.layout.size
    final = values(reference_point(run, "final"), size)
    middle = values(reference_point(run, "middle"), size)
    last = values(reference_point(run, 4), size)
    first = values(reference_point(run, 0), size)
    # The path has gone on from each of them to the next.
    lengths = [np.linalg.norm(final - x) for x in (first, middle, last)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] > 0


# What may not


def test_an_unknown_snapshot_is_a_key_error_that_names_the_others(run: Run):
    message = r"No snapshot 'hot' in .*run\.zarr; it has \['warm', 'cold'\]\. .*made by"
    with pytest.raises(KeyError, match=message):
        reference_point(run, "hot")


def test_a_path_is_not_a_reference(run: Run):
    with pytest.raises(KeyError, match=r"No snapshot '.*run\.zarr' in"):
        reference_point(run, run.location)


@pytest.mark.parametrize("epoch", [-1, 2, 4, np.int64(100)])
def test_an_unknown_epoch_is_a_key_error_that_names_the_others(run: Run, epoch: int):
    message = rf"start of epoch {epoch} in .*run\.zarr; .* of these epochs: 0-1, 3\."
    with pytest.raises(KeyError, match=message):
        reference_point(run, epoch)


def test_an_epoch_whose_first_row_is_not_yet_written_is_unknown(tmp_path: Path):
    run = write_run(tmp_path / "run.zarr", n_steps=4, window_starts=(0, 4))
    with pytest.raises(KeyError, match=r"epoch 1 in .* of these epochs: 0\."):
        reference_point(run, 1)


def test_a_run_without_final_iterate_offers_its_last_reference(tmp_path: Path):
    run = write_run(tmp_path / "run.zarr", n_steps=10, window_starts=(0, 4, 8, 9))
    message = (
        r"run\.zarr has no final iterate: its status is 'interrupted', after 10 steps\. "
        r".*reference=2, or"
    )
    with pytest.raises(ValueError, match=message):
        reference_point(run, "final")
    point = reference_point(run, 2)
    np.testing.assert_array_equal(values(point, SIZE), coded_reference(2, SIZE))


def test_a_run_without_any_reference_offers_none(tmp_path: Path):
    run = write_run(tmp_path / "run.zarr")
    with pytest.raises(ValueError, match=r"after 0 steps\. .*there is none to offer"):
        reference_point(run, "final")


def test_another_run_needs_a_final_iterate(run: Run, tmp_path: Path):
    other = write_run(tmp_path / "other.zarr", n_steps=2, window_starts=(0,))
    with pytest.raises(ValueError, match=r"other\.zarr has no final iterate"):
        reference_point(run, other)


MISFITS: dict[str, tuple[Tensors, list[str]]] = {
    "empty": (
        {},
        [
            "3 of 3 differ",
            r"weight: missing, expected shape \(40, 30\)",
            r"bias: missing, expected shape \(3,\)",
            r"scale: missing, expected shape \(\)",
        ],
    ),
    "missing and misshapen": (
        {"bias": np.ones(4), "weight": np.ones((30, 40)), "other": np.ones(3)},
        [
            "3 of 3 differ",
            r"weight: got shape \(30, 40\), expected shape \(40, 30\)",
            r"bias: got shape \(4,\), expected shape \(3,\)",
            r"scale: missing, expected shape \(\)",
        ],
    ),
    "one": (
        WARM | {"scale": np.ones(1)},
        ["1 of 3 differ", r"scale: got shape \(1,\), expected shape \(\)"],
    ),
}


@pytest.mark.parametrize(("tensors", "lines"), MISFITS.values(), ids=MISFITS)
def test_all_tensors_that_do_not_fit_are_listed(
    run: Run, tmp_path: Path, tensors: Tensors, lines: list[str]
):
    message = ":\n".join([lines[0], "\n".join(lines[1:])]) + "$"
    with pytest.raises(ValueError, match=message):
        reference_point(run, tensors)
    if tensors:
        shapes = {name: np.shape(array) for name, array in tensors.items()}
        other = write_run(tmp_path / "other.zarr", final=tensors, shapes=shapes)
        with pytest.raises(ValueError, match=message):
            reference_point(run, other)


@pytest.mark.parametrize(
    "reference",
    [1.0, True, np.True_, None, [1], np.ones(3), Path("run.zarr")],
    ids=lambda value: type(value).__module__ + "." + type(value).__name__,
)
def test_other_objects_are_type_errors(run: Run, reference: Any):
    kind = type(reference).__name__
    with pytest.raises(
        TypeError, match=rf"`reference` must be 'final', .*got {kind}\."
    ):
        reference_point(run, reference)


# The parameters at a point


def test_an_iterate_has_the_tensors_of_a_point_in_their_shapes(run: Run):
    for reference, tensors in (("final", FINAL), ("warm", WARM), (COLD, COLD)):
        found = iterate(run, reference)
        assert list(found) == list(SHAPES)
        for name, values in found.items():
            np.testing.assert_array_equal(values, tensors[name], strict=True)
            assert values.flags.writeable
    # Epoch 3 begins with window 4; tensors begin at multiples of blocks.
    decoded = coded_reference(4, SIZE)
    epoch = iterate(run, 3)
    np.testing.assert_array_equal(epoch["weight"].ravel(), decoded[:1200])
    np.testing.assert_array_equal(epoch["bias"], decoded[2 * BLOCK : 2 * BLOCK + 3])
    np.testing.assert_array_equal(epoch["scale"], decoded[3 * BLOCK])


def test_an_iterate_is_read_in_parts(run: Run, monkeypatch: pytest.MonkeyPatch):
    whole = iterate(run, 1)
    monkeypatch.setattr("trajstore.reading.target.PART", BLOCK)
    for name, values in iterate(run, 1).items():
        np.testing.assert_array_equal(values, whole[name], strict=True)


def test_an_iterate_is_a_copy(run: Run):
    iterate(run)["weight"][:] = 0
    np.testing.assert_array_equal(iterate(run)["weight"], FINAL["weight"])


def test_a_model_takes_an_iterate():
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 1)
    values = {"weight": np.ones((1, 2), "f4"), "bias": np.zeros(1, "f4")}
    state = {name: torch.from_numpy(value) for name, value in values.items()}
    model.load_state_dict(state, strict=False)
    assert model(torch.ones(1, 2)).item() == 2


def test_text_is_read_as_a_reference(run: Run, tmp_path: Path):
    from trajstore.reading.target import read_reference

    other = write_run(tmp_path / "other.zarr", final=FINAL)
    assert read_reference("warm", run) == "warm"
    assert read_reference("3", run) == 3
    assert read_reference("final", run) == "final"
    found = read_reference(str(tmp_path / "other.zarr"), run)
    assert isinstance(found, Run)
    assert found.location == other.location
