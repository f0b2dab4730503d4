"""Check what a store says of itself before anything in it is used."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from trajstore.layout import BLOCK, Layout
from trajstore.rotation import n_blocks
from trajstore.schema import (
    FORMAT,
    FORMAT_VERSION,
    KEYFRAME_EVERY,
    STATUSES,
    RunSpec,
    n_metric_columns,
    step_arrays,
    validate_spec,
    vector_array,
    window_arrays,
)

KEYFRAMES: Final = "references/keyframes"


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
        problem = f"format_version: expected {FORMAT_VERSION}, got {version!r}."
        return [f"{problem} Open it with the version of trajstore that wrote it."]
    problems = validate_spec(attributes.get("spec")) + [
        f"{key}: expected {expected}, got {attributes.get(key)!r}"
        for key, (is_valid, expected) in _RULES.items()
        if not is_valid(attributes.get(key))
    ]
    consolidated = root.get("consolidated_metadata") if isinstance(root, Mapping) else 0
    found = consolidated.get("metadata") if isinstance(consolidated, Mapping) else None
    if not isinstance(found, Mapping):
        problems.append(f"consolidated_metadata: expected an object, got {found!r}")
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
        and isinstance(snapshot.get("step"), int)
        for snapshot in value.values()
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
    "metrics": (_is_metrics, "a list of different strings"),
    "resumes": (_is_resumes, "a list of objects with `step` and `n_missing`"),
    "snapshots": (_is_snapshots, "an object of objects with `array` and `step`"),
}


def _array_problems(
    found: Mapping[str, Any], attributes: Mapping[str, Any]
) -> list[str]:
    """Compare the metadata of arrays with what the writer would have written."""
    spec = RunSpec.from_json(attributes["spec"])
    size = Layout(spec.names, spec.shapes).size
    blocks = n_blocks(spec.sketch_bits)
    steps = step_arrays(spec, size=size, n_metrics=n_metric_columns(0), n_blocks=blocks)
    # Names that were logged late have widened the array, not its chunks.
    n_metrics = n_metric_columns(len(attributes["metrics"]))
    steps["scalars"] = replace(steps["scalars"], inner=(n_metrics,))
    windows = window_arrays(spec, size=size, block=BLOCK)
    vectors = [snapshot["array"] for snapshot in attributes["snapshots"].values()]
    vectors += ["final"] if "final" in found else []

    lengths = {name: _length(found.get(name)) for name in [*steps, *windows]}
    n_steps, n_windows = lengths["epoch"], lengths["references/start"]
    n_keyframes = -(-n_windows // KEYFRAME_EVERY)
    expected = {
        **{name: array.metadata(n_steps) for name, array in steps.items()},
        **{name: array.metadata(n_windows) for name, array in windows.items()},
        KEYFRAMES: windows[KEYFRAMES].metadata(n_keyframes),
        **{name: vector_array(size).metadata(size) for name in vectors},
    }
    return [
        problem
        for name, document in expected.items()
        for problem in _differences(name, document, found.get(name))
    ]


def _length(document: Any) -> int:
    """Return the length of an array's first dimension, 0 if it has none."""
    shape = document.get("shape") if isinstance(document, Mapping) else None
    length = shape[0] if isinstance(shape, list) and shape else 0
    return length if isinstance(length, int) and length >= 0 else 0


def _differences(name: str, expected: dict[str, object], found: Any) -> list[str]:
    if not isinstance(found, Mapping):
        return [f"{name}: missing"]
    return [
        f"{name}: {key}: expected {value!r}, got {found.get(key)!r}"
        for key, value in expected.items()
        if found.get(key) != value
    ]
