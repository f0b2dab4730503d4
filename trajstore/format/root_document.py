"""Check what a store says of itself before anything in it is used.

The document may have been damaged, or made to do harm: nothing in it decides how much
memory is taken, beyond bounds that no real run comes near.
"""

import json
import re
from collections.abc import Callable, Mapping
from reprlib import Repr
from typing import Any, Final, cast

from trajstore.format.chunk_size import chunk_size
from trajstore.format.layout import BLOCK, Layout
from trajstore.format.schema import (
    DERIVED_TABLE,
    FORMAT,
    FORMAT_VERSION,
    KEYFRAME_EVERY,
    KEYFRAMES,
    LAYER,
    STATUSES,
    STEP,
    RunSpec,
    SchemaError,
    row_arrays,
    table_columns,
    validate_spec,
    vector_array,
    window_arrays,
)

MAX_TENSORS: Final = 1 << 14
MAX_DIMENSIONS: Final = 32
MAX_BASIS: Final = 32
MAX_SAMPLES: Final = 1 << 24
MAX_SIZE: Final = 1 << 35
"""Longest flat parameter vector."""

MAX_ROWS: Final = 1 << 31
MAX_CHUNK_BYTES: Final = 1 << 30
"""Largest chunk in memory; only exact recordings come near."""

MAX_MEASUREMENTS: Final = 1 << 10

_SHOWN: Final = Repr()
_SHOWN.maxlevel = 8
_SHOWN.maxlist = _SHOWN.maxdict = _SHOWN.maxtuple = 40
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 200


def read_root(text: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the root document of a store.

    Parameters
    ----------
    text : bytes
        The store's ``zarr.json``.

    Returns
    -------
    attributes : dict
        What the store says of itself.
    arrays : dict from str to dict
        Metadata of every array, by its path: those that the writer would have written.

    Raises
    ------
    SchemaError
        If the text is no JSON, or not that of a readable store; all problems are listed.
    """
    try:
        root = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise SchemaError([f"zarr.json: truncated or damaged ({reason})."]) from error
    if problems := root_problems(root):
        raise SchemaError(problems)
    found = root["consolidated_metadata"]["metadata"]
    return root["attributes"], _expected_arrays(found, root["attributes"])


def root_problems(root: object) -> list[str]:
    """List every reason why a root document is not that of a readable store.

    Parameters
    ----------
    root : object
        Decoded JSON of the store's ``zarr.json``.

    Returns
    -------
    list of str
        One ``"place: problem"`` for each, empty if there is none.
    """
    attributes = root.get("attributes") if isinstance(root, Mapping) else None
    if not isinstance(attributes, Mapping) or attributes.get("format") != FORMAT:
        return ["not a trajectory store; its attributes do not say so."]
    version = attributes.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        problem = f"format_version: expected {FORMAT_VERSION}, got {_shown(version)}."
        return [f"{problem} Open it with the version of trajstore that wrote it."]
    problems = validate_spec(attributes.get("spec")) + [
        f"{key}: expected {expected}, got {_shown(attributes.get(key))}"
        for key, (is_valid, expected) in _RULES.items()
        if not is_valid(attributes.get(key))
    ]
    if not problems:
        problems = _bound_problems(attributes)
    consolidated = cast("Mapping[str, Any]", root).get("consolidated_metadata")
    found = consolidated.get("metadata") if isinstance(consolidated, Mapping) else None
    if not isinstance(found, Mapping):
        problems.append(
            f"consolidated_metadata: expected an object, got {_shown(found)}"
        )
    elif not problems:
        problems = _array_problems(found, attributes)
    return problems


def _is_metrics(value: object) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(name, str) for name in value)
        and len(set(value)) == len(value)
    )


def _is_snapshots(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(snapshot, Mapping)
        and isinstance(snapshot.get("array"), str)
        and re.fullmatch(r"snapshots/[0-9]{1,9}", snapshot["array"])
        and isinstance(snapshot.get("step"), int)
        for snapshot in value.values()
    )


def _is_measurements(value: object) -> bool:
    """Whether groups are those that the writer makes: numbered, in their order."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and isinstance(measurement, Mapping)
        and measurement.get("group") == f"measurements/{i}"
        and _is_metrics(measurement.get("metrics"))
        for i, (name, measurement) in enumerate(value.items())
    )


def _is_resumes(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(resumption, Mapping)
        and all(isinstance(resumption.get(key), int) for key in ("step", "n_missing"))
        for resumption in value
    )


_RULES: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    "status": (lambda value: value in STATUSES, f"one of {STATUSES}"),
    "created": (lambda value: isinstance(value, str), "a string"),
    "attrs": (lambda value: isinstance(value, Mapping), "an object"),
    "measurements": (_is_measurements, "an object of objects with numbered `group`s"),
    "metrics": (_is_metrics, "a list of different strings"),
    "resumes": (_is_resumes, "a list of objects with `step` and `n_missing`"),
    "snapshots": (_is_snapshots, "an object of objects with `array` and `step`"),
}


def _bound_problems(attributes: Mapping[str, Any]) -> list[str]:
    """Refuse what no real run is like, before anything is computed with it."""
    spec = RunSpec.from_json(attributes["spec"])
    taken = {*table_columns(spec), *DERIVED_TABLE, STEP, LAYER, "basis"}
    taken |= {"epoch", "iteration", "window"}
    measurements = attributes["measurements"].values()
    for metrics in (attributes["metrics"], *(m["metrics"] for m in measurements)):
        if clash := sorted(taken.intersection(metrics)):
            return [f"metrics: {clash} are names of tables or coordinates"]
    largest = {
        "measurements": (len(measurements), MAX_MEASUREMENTS),
        "names: tensors": (len(spec.names), MAX_TENSORS),
        "basis": (spec.basis, MAX_BASIS),
        "samples": (spec.samples, MAX_SAMPLES),
        "shapes: dimensions": (max(map(len, spec.shapes)), MAX_DIMENSIONS),
        "shapes: elements in a dimension": (
            max((n for shape in spec.shapes for n in shape), default=1),
            MAX_SIZE,
        ),
    }
    problems = [
        f"{name}: expected at most {bound}, got {_shown(number)}"
        for name, (number, bound) in largest.items()
        if number > bound
    ]
    if problems:
        return problems
    size = Layout(spec.names, spec.shapes).size
    if not 0 < size <= MAX_SIZE:
        return [f"shapes: expected 1 to {MAX_SIZE} elements in all, got {size}"]
    return []


def _expected_arrays(
    found: Mapping[str, Any], attributes: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the metadata the writer would have written, with the lengths found."""
    spec = RunSpec.from_json(attributes["spec"])
    size = Layout(spec.names, spec.shapes).size
    expected: dict[str, dict[str, Any]] = {}
    of_steps = {"group": "", "metrics": attributes["metrics"]}
    for table in (of_steps, *attributes["measurements"].values()):
        group, n_metrics = table["group"], len(table["metrics"])
        n_rows = _length(found.get(f"{group}/epoch" if group else "epoch"))
        rows = row_arrays(spec, n_metrics=n_metrics, group=group)
        expected |= {name: array.metadata(n_rows) for name, array in rows.items()}

    windows = window_arrays(spec, size=size, block=BLOCK)
    n_windows = _length(found.get("references/start"))
    expected |= {name: array.metadata(n_windows) for name, array in windows.items()}
    n_keyframes = -(-n_windows // KEYFRAME_EVERY)
    expected[KEYFRAMES] = windows[KEYFRAMES].metadata(n_keyframes)

    vectors = [snapshot["array"] for snapshot in attributes["snapshots"].values()]
    vectors += ["final"] if "final" in found else []
    return expected | {name: vector_array(size).metadata(size) for name in vectors}


def _array_problems(
    found: Mapping[str, Any], attributes: Mapping[str, Any]
) -> list[str]:
    """Compare the metadata of arrays with what the writer would have written."""
    expected = _expected_arrays(found, attributes)
    problems = [
        problem
        for name, document in expected.items()
        for problem in differences(name, document, found.get(name))
    ]
    return problems + [
        f"{name}: a chunk takes {size} bytes, expected at most {MAX_CHUNK_BYTES}"
        for name, document in expected.items()
        if (size := chunk_size(document).decoded) > MAX_CHUNK_BYTES
    ]


def _length(document: Any) -> int:
    """Return the length of an array's first dimension, 0 if it has none."""
    shape = document.get("shape") if isinstance(document, Mapping) else None
    length = shape[0] if isinstance(shape, list) and shape else 0
    return length if isinstance(length, int) and 0 <= length <= MAX_ROWS else 0


def differences(name: str, expected: Mapping[str, object], found: Any) -> list[str]:
    """List where the metadata of an array is not as expected.

    Parameters
    ----------
    name : str
        Path of the array.
    expected : mapping
        The document that it should be.
    found : object
        The decoded JSON.

    Returns
    -------
    list of str
        One ``"place: problem"`` for each, empty if there is none.
    """
    if not isinstance(found, Mapping):
        return [f"{name}: missing"]
    return [
        f"{name}: {key}: expected {value!r}, got {_shown(found.get(key))}"
        for key, value in expected.items()
        if found.get(key) != value
    ]


def _shown(value: object) -> str:
    """Write a value that may be of any size."""
    text = _SHOWN.repr(value)
    return text if len(text) <= 1000 else f"{text[:1000]}..."
