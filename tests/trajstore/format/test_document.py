"""Test that a root document is parsed, or refused with a list of all problems."""

import copy
import json
from typing import Any

import pytest

from tests.trajstore.handmade import SIZE, SPEC, Edit, write_run
from trajstore.format.arrays import StoredArray, first_sign_number
from trajstore.format.checks import seal
from trajstore.format.document import (
    Document,
    RowGroup,
    Snapshot,
    parse_document,
)
from trajstore.format.run_spec import SchemaError

Root = dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """Return the decoded root document of a complete run of ten steps."""
    path = tmp_path_factory.mktemp("ten") / "run.zarr"
    write_run(path, n_steps=10, n_measured=4)
    root: Root = json.loads((path / "zarr.json").read_bytes())
    return root


@pytest.fixture
def root(whole: Root) -> Root:
    """Return a copy of the root document that a test may change."""
    return copy.deepcopy(whole)


def parse(root: Root) -> Document:
    return parse_document(seal(root))


def problems_of(root: Root) -> tuple[str, ...]:
    with pytest.raises(SchemaError, match=": ") as error:
        parse(root)
    return error.value.problems


def test_a_document_holds_what_the_writer_wrote(root: Root):
    root["attributes"]["snapshots"] = {"warm": {"array": "snapshots/0", "step": 3}}
    arrays = root["consolidated_metadata"]["metadata"]
    arrays["snapshots/0"] = arrays["final"]
    document = parse(root)
    assert (document.spec, document.status) == (SPEC, "complete")
    assert document.layout.size == SIZE
    assert document.steps == RowGroup("", "", ("loss",), 0)
    group = RowGroup("other", "measurements/0", ("note",), first_sign_number(0))
    assert document.measurements == {"other": group}
    assert [document.n_rows(g) for g in (document.steps, group)] == [10, 4]
    assert (document.n_windows, document.has_final) == (10, True)
    assert document.snapshots == {"warm": Snapshot("snapshots/0", 3)}
    assert document.created == root["attributes"]["created"]
    assert (document.attrs, document.resumes) == ({}, ())


def test_arrays_are_described_as_in_the_store(root: Root):
    arrays = parse(root).arrays
    found = root["consolidated_metadata"]["metadata"]
    assert arrays.keys() == {n for n in found if found[n]["node_type"] == "array"}
    for name, array in arrays.items():
        assert isinstance(array, StoredArray)
        assert json.loads(json.dumps(array.metadata())) == found[name]
        assert list(array.shape) == found[name]["shape"]


def without(*keys: str) -> Edit:
    return lambda attributes, _arrays: [attributes.pop(key) for key in keys]


def setting(**values: object) -> Edit:
    return lambda attributes, _arrays: attributes.update(values)


def without_arrays(*names: str) -> Edit:
    return lambda _attributes, arrays: [arrays.pop(name) for name in names]


def with_shape(name: str, *shape: int) -> Edit:
    return lambda _attributes, arrays: arrays[name].update(shape=list(shape))


def with_spec(**values: object) -> Edit:
    return lambda attributes, _arrays: attributes["spec"].update(values)


def together(*edits: Edit) -> Edit:
    return lambda attributes, arrays: [edit(attributes, arrays) for edit in edits]


OPEN_WITH = (
    "The store was written by a newer trajstore; read it with that version or a newer one: "
    "pip install --upgrade trajstore."
)

SNAPSHOTS = "an object of objects with `array` and `step`"

DAMAGED: dict[str, tuple[Edit, list[str]]] = {
    "another version": (
        setting(format_version=3, written_by=None),
        [f"format_version: expected 1 to 2, got 3. {OPEN_WITH}"],
    ),
    "a newer version that names itself": (
        setting(format_version=3, written_by="trajstore 9.1"),
        [
            "format_version: expected 1 to 2, got 3. "
            + OPEN_WITH.replace("a newer trajstore", "trajstore 9.1")
        ],
    ),
    "a writer that is not a version": (
        setting(written_by="trajstore <b>1</b>"),
        [
            (
                "written_by: expected trajstore and a version, or nothing, got "
                "'trajstore <b>1</b>'"
            )
        ],
    ),
    "no version": (
        without("format_version", "written_by"),
        [f"format_version: expected 1 to 2, got None. {OPEN_WITH}"],
    ),
    "no attributes": (
        without("spec", "status", "metrics", "snapshots"),
        [
            "spec: expected an object, got None",
            "status: expected one of ('running', 'complete', 'failed'), got None",
            "metrics: expected a list of different strings, got None",
            f"snapshots: expected {SNAPSHOTS}, got None",
        ],
    ),
    "wrong attributes": (
        together(
            setting(status="done", metrics="loss", snapshots=[]),
            with_spec(basis=-1, colour=1),
        ),
        [
            "colour: unknown",
            "basis: expected an integer of at least 0, got -1",
            "status: expected one of ('running', 'complete', 'failed'), got 'done'",
            "metrics: expected a list of different strings, got 'loss'",
            f"snapshots: expected {SNAPSHOTS}, got []",
        ],
    ),
    "missing arrays": (
        without_arrays("tables", "signs", "references/codes"),
        ["tables: missing", "signs: missing", "references/codes: missing"],
    ),
    "wrong shapes": (
        together(
            with_shape("signs", 10, 9),
            with_shape("references/keyframes", 1, 5),
            with_shape("epoch", 10, 1),
        ),
        [
            "epoch: shape: expected [10], got [10, 1]",
            "signs: shape: expected [10, 8], got [10, 9]",
            "references/keyframes: shape: expected [1, 4096], got [1, 5]",
        ],
    ),
    "other numbers": (
        lambda _attributes, arrays: arrays["signs"].update(data_type="float64"),
        ["signs: data_type: expected 'uint8', got 'float64'"],
    ),
    "names that are no text": (
        setting(metrics=["loss", 3]),
        ["metrics: expected a list of different strings, got ['loss', 3]"],
    ),
    "a snapshot that is not there": (
        setting(snapshots={"warm": {"array": "snapshots/9", "step": 3}}),
        ["snapshots/9: missing"],
    ),
    "true is not a version": (
        setting(format_version=True, written_by=None),
        [f"format_version: expected 1 to 2, got True. {OPEN_WITH}"],
    ),
    "missing scalars": (without_arrays("scalars"), ["scalars: missing"]),
}


@pytest.mark.parametrize(("edit", "problems"), DAMAGED.values(), ids=DAMAGED)
def test_every_problem_of_a_document_is_listed(
    root: Root, edit: Edit, problems: list[str]
):
    edit(root["attributes"], root["consolidated_metadata"]["metadata"])
    assert problems_of(root) == tuple(problems)


@pytest.mark.parametrize("metrics", [["loss", "step"], ["grad_sq"], ["param_sq"]])
def test_scalars_do_not_have_names_of_tables_or_coordinates(
    root: Root, metrics: list[str]
):
    root["attributes"]["metrics"] = metrics
    expected = f"metrics: {metrics[-1:]} are names of tables or coordinates"
    assert problems_of(root) == (expected,)


def test_arrays_of_different_lengths_are_refused(root: Root):
    root["consolidated_metadata"]["metadata"]["window"]["shape"] = [9]
    assert problems_of(root) == ("window: shape: expected [10], got [9]",)


@pytest.mark.parametrize("shape", [3, [], ["x"], None, [-1]])
def test_invalid_shapes_are_refused(root: Root, shape: object):
    root["consolidated_metadata"]["metadata"]["epoch"]["shape"] = shape
    assert problems_of(root)[0].startswith("epoch: shape: expected")


@pytest.mark.parametrize("consolidated", [None, [], {}, {"metadata": []}])
def test_a_root_without_the_arrays_is_refused(root: Root, consolidated: object):
    root["consolidated_metadata"] = consolidated
    [problem] = problems_of(root)
    assert problem.startswith("consolidated_metadata: expected an object")


def test_problems_of_attributes_and_missing_arrays_are_listed_together(root: Root):
    root["attributes"]["status"] = "done"
    del root["consolidated_metadata"]
    status, arrays = problems_of(root)
    assert status.startswith("status: expected one of")
    assert arrays.startswith("consolidated_metadata: expected an object")


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\xff"])
def test_text_other_than_json_is_refused(text: bytes):
    with pytest.raises(SchemaError, match=r"^zarr\.json: truncated or damaged \("):
        parse_document(text)


@pytest.mark.parametrize("text", [b"[1]", b"{}", b'"text"', b'{"attributes": []}'])
def test_json_that_is_not_a_store_is_refused(text: bytes):
    with pytest.raises(SchemaError, match=r"^not a trajectory store: its attributes"):
        parse_document(text)
