"""Test that targets are found by every kind of reference."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.trajstore.handmade import small_spec
from trajstore import Run, iterate, open_run, parameters_at
from trajstore.format.arrays import METRIC_BLOCK, step_arrays
from trajstore.format.layout import BLOCK
from trajstore.format.run_spec import RunSpec
from trajstore.reading.results import target_slug
from trajstore.reading.target import Target, find_target
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
    """Return tensors as one flat vector, each padded to whole blocks."""
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
    """Write a run whose window c has the anchor `coded_anchor(c, size)`."""
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


def coded_anchor(c: int, size: int) -> Array:
    """Return the sum of the coded differences, which is exact for multiples of 1/2."""
    differences = [0.5 * window_code(i, size)[0].astype("f4") for i in range(1, c + 1)]
    return sum(differences, np.zeros(size, "f4"))


def values(target: Target, size: int) -> Array:
    """Read a target as a whole, and check that its parts agree."""
    whole = target.read(slice(0, size))
    parts = [target.read(slice(i, i + BLOCK)) for i in range(0, size, BLOCK)]
    np.testing.assert_array_equal(np.concatenate(parts), whole, strict=True)
    assert whole.dtype == np.float32
    return whole


FINAL, WARM, COLD = random_tensors(1), random_tensors(2), random_tensors(3)
SIZE = flat(FINAL).size


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of 4 epochs, of which 0, 1 and 3 start with an anchor."""
    return write_run(
        tmp_path_factory.mktemp("target") / "run.zarr",
        n_steps=14,
        window_starts=(0, 2, 4, 10, 12),
        snapshots={"warm": (5, WARM), "cold": (7, COLD)},
        final=FINAL,
    )


# Valid references


def test_final_is_the_last_iterate(run: Run):
    target = find_target(run, "final")
    assert target.label == "final"
    assert "float32" in target.note
    np.testing.assert_array_equal(values(target, SIZE), flat(FINAL), strict=True)


@pytest.mark.parametrize(
    ("name", "step", "tensors"), [("warm", 5, WARM), ("cold", 7, COLD)]
)
def test_any_other_string_names_a_snapshot(
    run: Run, name: str, step: int, tensors: Tensors
):
    target = find_target(run, name)
    assert target.label == f"snapshot {name}"
    assert target.note == f"snapshot {name!r} before step {step}, in float32"
    np.testing.assert_array_equal(values(target, SIZE), flat(tensors), strict=True)


@pytest.mark.parametrize(("window", "step"), [(0, 0), (1, 2), (3, 10), (4, 12)])
def test_the_start_of_a_window_selects_its_anchor(run: Run, window: int, step: int):
    target = find_target(run, f"step:{step}")
    assert (target.label, target.identity) == (f"step {step}", f"step {step}")
    assert target.note.startswith(f"the anchor at step {step}: a lossy code")
    assert target_slug(target.label) == f"step-{step}"
    expected = coded_anchor(window, SIZE)
    np.testing.assert_array_equal(values(target, SIZE), expected, strict=True)


def test_a_snapshot_may_be_named_like_a_step(tmp_path: Path):
    snapshots = {"step:4": (2, WARM), "step 4": (2, COLD)}
    run = write_run(
        tmp_path / "run.zarr", n_steps=6, window_starts=(0, 4), snapshots=snapshots
    )
    named = find_target(run, "step:4")
    np.testing.assert_array_equal(values(named, SIZE), flat(WARM), strict=True)
    slugs = [target_slug(find_target(run, name).label) for name in snapshots]
    assert slugs == ["snapshot-step%3A4", "snapshot-step%204"]


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8])
@pytest.mark.parametrize(("epoch", "window"), [(0, 0), (1, 2), (3, 4)])
def test_an_integer_selects_an_epoch(run: Run, epoch: int, window: int, kind: type):
    target = find_target(run, kind(epoch))
    assert target.label == f"epoch {epoch}"
    assert f"start of epoch {epoch}: a lossy code" in target.note
    expected = coded_anchor(window, SIZE)
    np.testing.assert_array_equal(values(target, SIZE), expected, strict=True)


def test_another_run_stands_for_its_final_iterate(run: Run, tmp_path: Path):
    other = write_run(tmp_path / "other.zarr", final=COLD)
    target = find_target(run, other)
    assert target.label == "final of other.zarr"
    assert "other.zarr" in target.note
    np.testing.assert_array_equal(values(target, SIZE), flat(COLD), strict=True)


def test_another_run_may_hold_its_parameters_in_another_order(run: Run, tmp_path: Path):
    order = {"extra": (5000,), "scale": (), "bias": (3,), "weight": (40, 30)}
    tensors = random_tensors(4, order)
    other = write_run(tmp_path / "other.zarr", final=tensors, shapes=order)
    target = find_target(run, other)
    np.testing.assert_array_equal(values(target, SIZE), flat(tensors), strict=True)


def test_a_mapping_gives_arrays_by_name_in_any_order(run: Run):
    given = dict(reversed(WARM.items())) | {"running_mean": np.ones(7), "n": 3}
    target = find_target(run, given)
    assert target.label == "given"
    np.testing.assert_array_equal(values(target, SIZE), flat(WARM), strict=True)


def test_a_mapping_may_hold_anything_like_an_array(run: Run):
    given = {k: v.astype(float).tolist() for k, v in WARM.items()}
    target = find_target(run, given)
    np.testing.assert_array_equal(values(target, SIZE), flat(WARM), strict=True)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_a_mapping_may_hold_tensors(run: Run, dtype: str):
    torch = pytest.importorskip("torch")
    given = {
        name: torch.tensor(array).to(getattr(torch, dtype)).requires_grad_()
        for name, array in WARM.items()
    }
    expected = {k: v.detach().to(torch.float64).numpy() for k, v in given.items()}
    found = values(find_target(run, given), SIZE)
    np.testing.assert_array_equal(found, flat(expected).astype("f4"), strict=True)


def test_the_arrays_of_a_mapping_are_copied(run: Run):
    given = random_tensors(5)
    target = find_target(run, given)
    given["bias"][:] = 0
    np.testing.assert_array_equal(values(target, SIZE), flat(random_tensors(5)))


def test_recorded_anchors_are_found(example_run: Path):
    run = open_run(example_run)
    size = run.layout.size
    final = values(find_target(run, "final"), size)
    middle = values(find_target(run, "middle"), size)
    last = values(find_target(run, 4), size)
    first = values(find_target(run, 0), size)
    # The run moved between any two anchors.
    lengths = [np.linalg.norm(final - x) for x in (first, middle, last)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] > 0


# Invalid references


def test_an_unknown_snapshot_is_a_key_error_that_names_the_others(run: Run):
    message = r"No snapshot 'hot' in .*run\.zarr; it has \['warm', 'cold'\]\. .*made by"
    with pytest.raises(KeyError, match=message):
        find_target(run, "hot")


@pytest.mark.parametrize("epoch", [-1, 2, 4, np.int64(100)])
def test_an_unknown_epoch_is_a_key_error_that_names_the_others(run: Run, epoch: int):
    message = rf"start of epoch {epoch} in .*run\.zarr; .* start with one: 0-1, 3\."
    with pytest.raises(KeyError, match=message):
        find_target(run, epoch)


STARTS: dict[str, tuple[int, str]] = {
    "between": (5, "2, 4, 10, 12"),
    "first": (1, "0, 2, 4"),
    "last": (13, "10, 12"),
    "huge": (10**30, "10, 12"),
}


@pytest.mark.parametrize(("step", "nearest"), STARTS.values(), ids=STARTS)
def test_a_step_without_an_anchor_names_the_nearest(run: Run, step: int, nearest: str):
    message = (
        rf"No window starts at step {step} in .*run\.zarr; .*start one: {nearest}\."
    )
    with pytest.raises(KeyError, match=message):
        find_target(run, f"step:{step}")


@pytest.mark.parametrize("text", ["step:", "step:-1", "step:4.0", "step:\u0664"])
def test_a_step_is_a_number(run: Run, text: str):
    with pytest.raises(
        ValueError, match=r"names no step; write step:4500 for the anch"
    ):
        find_target(run, text)


def test_a_window_whose_first_row_is_not_yet_written_has_no_target(tmp_path: Path):
    run = write_run(tmp_path / "run.zarr", n_steps=4, window_starts=(0, 4))
    with pytest.raises(KeyError, match=r"step 4 in .* nearest steps .*: 0\."):
        find_target(run, "step:4")


def test_an_epoch_whose_first_row_is_not_yet_written_is_unknown(tmp_path: Path):
    run = write_run(tmp_path / "run.zarr", n_steps=4, window_starts=(0, 4))
    with pytest.raises(KeyError, match=r"epoch 1 in .* start with one: 0\."):
        find_target(run, 1)


def test_a_run_without_final_iterate_offers_its_last_anchor(tmp_path: Path):
    run = write_run(tmp_path / "run.zarr", n_steps=10, window_starts=(0, 4, 8, 9))
    message = (
        r"run\.zarr has no final iterate: its status is 'interrupted', after 10 steps\. "
        r'.*reference="step:9", the start of the last window, or reference=2, the last epoch '
        r"that starts with an anchor\."
    )
    with pytest.raises(ValueError, match=message):
        find_target(run, "final")
    target = find_target(run, 2)
    np.testing.assert_array_equal(values(target, SIZE), coded_anchor(2, SIZE))


def test_a_run_without_any_anchor_offers_none(tmp_path: Path):
    run = write_run(tmp_path / "run.zarr")
    with pytest.raises(
        ValueError, match=r"after 0 steps\. No step .*no other iterate is available"
    ):
        find_target(run, "final")


def test_another_run_needs_a_final_iterate(run: Run, tmp_path: Path):
    other = write_run(tmp_path / "other.zarr", n_steps=2, window_starts=(0,))
    with pytest.raises(ValueError, match=r"other\.zarr has no final iterate"):
        find_target(run, other)


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
        find_target(run, tensors)
    if tensors:
        shapes = {name: np.shape(array) for name, array in tensors.items()}
        other = write_run(tmp_path / "other.zarr", final=tensors, shapes=shapes)
        with pytest.raises(ValueError, match=message):
            find_target(run, other)


@pytest.mark.parametrize(
    "reference",
    [1.0, True, np.True_, None, [1], np.ones(3)],
    ids=lambda value: type(value).__module__ + "." + type(value).__name__,
)
def test_references_of_other_types_are_type_errors(run: Run, reference: Any):
    kind = type(reference).__name__
    with pytest.raises(
        TypeError, match=rf"`reference` must be 'final', .*got {kind}\."
    ):
        find_target(run, reference)


# The parameters at a target


def test_parameters_have_the_shapes_of_their_tensors(run: Run):
    for reference, tensors in (("final", FINAL), ("warm", WARM), (COLD, COLD)):
        found = parameters_at(run, reference)
        assert list(found) == list(SHAPES)
        for name, values in found.items():
            np.testing.assert_array_equal(values, tensors[name], strict=True)
            assert values.flags.writeable
    # Epoch 3 begins with window 4, and tensors begin at multiples of `BLOCK`.
    decoded = coded_anchor(4, SIZE)
    epoch = parameters_at(run, 3)
    np.testing.assert_array_equal(epoch["weight"].ravel(), decoded[:1200])
    np.testing.assert_array_equal(epoch["bias"], decoded[2 * BLOCK : 2 * BLOCK + 3])
    np.testing.assert_array_equal(epoch["scale"], decoded[3 * BLOCK])


def test_parameters_are_read_in_parts(run: Run, monkeypatch: pytest.MonkeyPatch):
    whole = parameters_at(run, 1)
    monkeypatch.setattr("trajstore.reading.target.PART", BLOCK)
    for name, values in parameters_at(run, 1).items():
        np.testing.assert_array_equal(values, whole[name], strict=True)


def test_parameters_are_a_copy(run: Run):
    parameters_at(run)["weight"][:] = 0
    np.testing.assert_array_equal(parameters_at(run)["weight"], FINAL["weight"])


def test_a_model_loads_parameters():
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 1)
    values = {"weight": np.ones((1, 2), "f4"), "bias": np.zeros(1, "f4")}
    state = {name: torch.from_numpy(value) for name, value in values.items()}
    model.load_state_dict(state, strict=False)
    assert model(torch.ones(1, 2)).item() == 2


def test_text_is_parsed_as_a_target(run: Run, tmp_path: Path):
    from trajstore.reading.target import read_target

    other = write_run(tmp_path / "other.zarr", final=FINAL)
    assert read_target("warm", run) == "warm"
    assert read_target("3", run) == 3
    assert read_target("final", run) == "final"
    assert read_target("step:4", run) == "step:4"
    found = read_target(str(tmp_path / "other.zarr"), run)
    assert isinstance(found, Run)
    assert found.location == other.location


def test_the_former_name_names_the_new_one(run: Run):
    with pytest.warns(DeprecationWarning, match=r"now trajstore\.parameters_at"):
        found = iterate(run)
    assert found.keys() == parameters_at(run).keys()
