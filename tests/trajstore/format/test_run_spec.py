"""Test the rules for the specification of a run, and its conversion to JSON."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trajstore.format.run_spec import RunSpec, SchemaError, validate_spec
from trajstore.format.sketch_size import sketch_fields

FIELDS = [field.name for field in fields(RunSpec)]
OPTIONAL = (
    *("samples", "sketch_version", "bits_per_number"),
    *("window_folds", "displacement_sum", "energies", "float64", "scaled"),
    *("shared_epochs", "window_steps", "compressed"),
)

VALID: dict[str, object] = {
    "names": ["a", "b"],
    "shapes": [[3, 4], []],
    "seed": 7,
    "sketch_bits": 64,
    "basis": 3,
    "probes": 16,
    "steps_per_epoch": 10,
    "reference_every": None,
    "total_steps": 100,
    "exact": False,
    "samples": 5,
    "sketch_version": 1,
    "bits_per_number": 1,
    "window_folds": 2,
    "displacement_sum": True,
    "energies": True,
    "float64": False,
    "scaled": True,
    "shared_epochs": 1,
    "window_steps": None,
    "compressed": False,
}

INVALID: dict[str, list[object]] = {
    "names": [[], ["a", "a"], ["a", 1], "ab", None],
    "shapes": [[[3, -4], []], [[3, 4.0], []], [[True], []], [[1 << 40], []], [3], 3],
    "seed": [-1, 1 << 64, 1.0, True, None],
    "sketch_bits": [4, 100, 1 << 25, 64.0, None],
    "basis": [-1, 2.0, True, None],
    "probes": [4, 100, 1 << 25, 16.0, None],
    "steps_per_epoch": [0, -1, 1.5, False],
    "reference_every": [0, -1, 1.5, False],
    "total_steps": [0, -1, 1.5, False],
    "exact": [0, 1, "true", None],
    "samples": [-1, 1.0, True, None],
    "sketch_version": [0, 3, 1.0, True, None],
    "bits_per_number": [0, 3, 32, 1.0, True, None],
    "window_folds": [-1, 1.0, True, None],
    "displacement_sum": [0, 1, "true", None],
    "energies": [0, 1, "true", None],
    "float64": [0, 1, "true", None],
    "scaled": [0, 1, "true", None],
    "shared_epochs": [0, 501, 1.0, True, None],
    "window_steps": [0, -1, 1.5, False],
    "compressed": [0, 1, "true", None],
}

VALID_LIMITS: dict[str, list[object]] = {
    "shapes": [[[0], []], [[(1 << 40) - 1], [1, 1]]],
    "seed": [0, (1 << 64) - 1],
    "sketch_bits": [8, 1 << 24],
    "basis": [0],
    "probes": [8, 1 << 24],
    "steps_per_epoch": [1, None],
    "reference_every": [1, None],
    "total_steps": [1, None],
    "exact": [True],
    "samples": [0],
}

counts = st.integers(1, 10**9)
sizes = st.sampled_from([1 << k for k in range(3, 25)])
shapes = st.lists(st.integers(0, 50), max_size=3).map(tuple)


@st.composite
def specs(draw: st.DrawFn) -> RunSpec:
    tensors = draw(st.dictionaries(st.text(max_size=8), shapes, min_size=1, max_size=5))
    return RunSpec(
        names=tuple(tensors),
        shapes=tuple(tensors.values()),
        seed=draw(st.integers(0, (1 << 64) - 1)),
        sketch_bits=draw(sizes),
        basis=draw(st.integers(0, 8)),
        probes=draw(sizes),
        steps_per_epoch=draw(st.none() | counts),
        reference_every=draw(st.none() | counts),
        total_steps=draw(st.none() | counts),
        exact=draw(st.booleans()),
        samples=draw(st.integers(0, 10**6)),
    )


@st.composite
def new_specs(draw: st.DrawFn) -> RunSpec:
    spec = draw(specs())
    fields: dict[str, Any] = {**sketch_fields(spec.n_params, spec.sketch_bits)}
    return replace(spec, **fields)


@settings(max_examples=50)
@given(spec=specs() | new_specs())
def test_a_spec_survives_json(spec: RunSpec):
    document = json.loads(json.dumps(spec.to_json()))
    assert validate_spec(document) == []
    assert RunSpec.from_json(document) == spec


def test_sums_of_windows_are_not_kept_in_float64():
    (problem,) = validate_spec(VALID | {"float64": True})
    assert problem.startswith("float64: expected false")
    without_sums = {
        "energies": False,
        "window_folds": 0,
        "displacement_sum": False,
        "scaled": False,
    }
    assert validate_spec(VALID | {"float64": True} | without_sums) == []


def test_products_in_float64_need_no_powers_of_two():
    without_sums = {"energies": False, "window_folds": 0, "displacement_sum": False}
    (problem,) = validate_spec(VALID | {"float64": True} | without_sums)
    assert problem.startswith("scaled: expected false")


def test_only_exact_recordings_have_compressed_rows():
    compressed = VALID | {"compressed": True}
    assert validate_spec(compressed) == [
        "compressed: expected false for a run that is not exact"
    ]
    assert validate_spec(compressed | {"exact": True}) == []


def test_epochs_share_only_windows_that_were_not_chosen():
    assert validate_spec(VALID | {"shared_epochs": 5}) == []
    for other in ({"reference_every": 10}, {"steps_per_epoch": None}):
        (problem,) = validate_spec(VALID | {"shared_epochs": 5} | other)
        assert problem == "shared_epochs: expected 1 for these windows, got 5"


def test_windows_are_chosen_only_for_runs_without_epochs():
    run: dict[str, object] = {"steps_per_epoch": None, "window_steps": 100}
    assert validate_spec(VALID | run) == []
    assert validate_spec(VALID | run | {"window_steps": 101}) == [
        "window_steps: expected at most 100, or None, got 101"
    ]
    for other in ("steps_per_epoch", "reference_every"):
        (problem,) = validate_spec(VALID | run | {other: 10})
        assert problem == "window_steps: expected None for these windows, got 100"
    (problem,) = validate_spec(VALID | run | {"total_steps": None})
    assert problem == "window_steps: expected None for these windows, got 100"


def test_the_cases_cover_every_field():
    assert list(VALID) == FIELDS
    assert list(INVALID) == FIELDS


@pytest.mark.parametrize("key", FIELDS)
def test_every_field_has_a_rule(key: str):
    (problem,) = validate_spec(VALID | {key: object()})
    assert problem.startswith(f"{key}: expected ")


@pytest.mark.parametrize(
    ("key", "value"), [(k, v) for k, values in INVALID.items() for v in values]
)
def test_an_invalid_value_gives_one_problem_that_names_its_key(key: str, value: object):
    (problem,) = validate_spec(VALID | {key: value})
    assert problem.startswith(f"{key}: expected ")
    assert problem.endswith(f", got {value!r}")


@pytest.mark.parametrize(
    ("key", "value"), [(k, v) for k, values in VALID_LIMITS.items() for v in values]
)
def test_values_at_the_limits_are_valid(key: str, value: object):
    assert validate_spec(VALID | {key: value}) == []


@pytest.mark.parametrize("key", [key for key in FIELDS if key not in OPTIONAL])
def test_a_missing_key_is_named(key: str):
    document = {k: v for k, v in VALID.items() if k != key}
    assert validate_spec(document) == [f"{key}: missing"]


def test_an_older_spec_lacks_optional_fields():
    document = {k: v for k, v in VALID.items() if k not in OPTIONAL}
    assert validate_spec(document) == []
    defaults: dict[str, object] = {
        "samples": 0,
        "sketch_version": 1,
        "bits_per_number": 1,
        "window_folds": 0,
        "displacement_sum": False,
        "energies": False,
        "scaled": False,
    }
    assert RunSpec.from_json(document) == RunSpec.from_json(VALID | defaults)


def test_no_recorder_writes_another_size_of_the_sketch():
    # A network of 13 parameters has 16 numbers of 16 bits.
    new: dict[str, object] = VALID | {"sketch_version": 2}
    assert validate_spec(VALID | {"bits_per_number": 2}) == [
        "bits_per_number: expected 1 for these shapes, got 2"
    ]
    assert validate_spec(new | {"sketch_bits": 256, "bits_per_number": 16}) == []
    assert validate_spec(new | {"sketch_bits": 256, "bits_per_number": 8}) == [
        "bits_per_number: expected 16 for these shapes, got 8"
    ]
    assert validate_spec(new | {"sketch_bits": 512, "bits_per_number": 16}) == [
        "sketch_bits: expected 256 for these shapes, got 512"
    ]
    # Eight bits are too few to give every parameter a number.
    assert validate_spec(new | {"sketch_bits": 8, "bits_per_number": 1}) == []


def test_an_unknown_key_is_named():
    assert validate_spec(VALID | {"colour": 1}) == ["colour: unknown"]


@pytest.mark.parametrize("document", [None, [], "spec", 3], ids=repr)
def test_a_spec_is_an_object(document: object):
    assert validate_spec(document) == [f"spec: expected an object, got {document!r}"]


def test_names_and_shapes_have_equal_length():
    assert validate_spec(VALID | {"names": ["a"]}) == [
        "shapes: expected one shape for each of the 1 names, got 2"
    ]


def test_all_problems_are_raised_together():
    document = VALID | {key: object() for key in FIELDS[1:]} | {"colour": 1}
    del document["names"]
    with pytest.raises(SchemaError, match=r"^names: missing\ncolour: unknown") as error:
        RunSpec.from_json(document)
    found = [problem.partition(":")[0] for problem in error.value.problems]
    assert sorted(found) == sorted([*FIELDS, "colour"])
    assert str(error.value) == "\n".join(error.value.problems)


def test_a_schema_error_is_a_value_error():
    with pytest.raises(ValueError, match="basis: expected an integer of at least 0"):
        RunSpec.from_json(VALID | {"basis": -1})
