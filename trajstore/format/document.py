"""Parse and check the root document of a store.

The document may be damaged or malicious. The sizes in it are therefore checked
against bounds before any memory is allocated for them; no real run comes close to the bounds.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from reprlib import Repr
from typing import Any, Final, NamedTuple

from trajstore.format.arrays import (
    DERIVED_TABLE,
    ENDED,
    KEYFRAMES,
    LAYER,
    STEP,
    ArraySpec,
    StoredArray,
    first_sign_number,
    n_keyframes,
    row_arrays,
    table_columns,
    vector_array,
    window_arrays,
)
from trajstore.format.checks import RootChecks, is_sealed, seal_is_intact
from trajstore.format.chunk_size import chunk_size
from trajstore.format.layout import Layout
from trajstore.format.optimizer_facts import (
    OPTIMIZER,
    GroupFacts,
    is_facts,
    parse_facts,
)
from trajstore.format.run_spec import RunSpec, SchemaError, is_names, validate_spec
from trajstore.format.scaled_tables import EXPONENTS, has_some_exponents

FORMAT: Final = "trajstore"
FORMAT_VERSION: Final = 2
"""Version of new stores. Stores of version 1 have no checks."""

STATUSES: Final = ("running", "complete", "failed")
"""Values of the stored status: still open, closed, and closed after an exception."""

MAX_TENSORS: Final = 1 << 14
MAX_DIMENSIONS: Final = 32
MAX_BASIS: Final = 32
MAX_SAMPLES: Final = 1 << 24
MAX_SIZE: Final = 1 << 35
"""Largest permitted length of a flat parameter vector."""

MAX_ROWS: Final = 1 << 31
MAX_CHUNK_BYTES: Final = 1 << 30
"""Largest permitted chunk in memory; only exact recordings come close to it."""

MAX_MEASUREMENTS: Final = 1 << 10
MAX_WINDOW_FOLDS: Final = 1 << 8

_RESERVED: Final = frozenset(
    {*DERIVED_TABLE, STEP, LAYER, "basis", "epoch", "iteration", "window"}
)
"""Names that scalars cannot have, in addition to the names of tables."""

_REPR: Final = Repr()
_REPR.maxlevel = 8
_REPR.maxlist = _REPR.maxdict = _REPR.maxtuple = 40
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 200


class Snapshot(NamedTuple):
    """A parameter vector stored in full."""

    array: str  # path of the array in the store
    step: int  # number of optimizer steps before the snapshot


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A group of rows: the optimizer steps, or one measurement."""

    name: str  # name of the measurement, empty for steps
    path: str  # path of the group in the store, empty for steps
    metrics: tuple[str, ...]  # names of the scalars
    first_sign_number: int  # number that seeds the random signs of the first row

    @property
    def is_measurement(self) -> bool:
        """Whether the group is a measurement."""
        return bool(self.path)

    def path_of(self, array: str) -> str:
        """Return the path of one of the group's arrays in the store."""
        return f"{self.path}/{array}" if self.path else array


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Root document of a store, as of one commit."""

    spec: RunSpec
    layout: Layout
    status: str  # one of STATUSES
    created: str  # start time of the recording, which identifies it
    written_by: str  # version of trajstore that wrote last; empty in older stores
    steps: RowGroup
    measurements: Mapping[str, RowGroup]
    snapshots: Mapping[str, Snapshot]
    resumes: tuple[Mapping[str, Any], ...]  # "step" and "n_missing" of each resumption
    attrs: Mapping[str, Any]  # user metadata from Recorder(attrs=...)
    optimizer: tuple[GroupFacts, ...]  # by parameter group; empty in older stores
    arrays: Mapping[str, StoredArray]  # arrays by path in the store
    version: int
    # The last two differ between commits, even if nothing else does.
    checksum: str = field(compare=False)  # checksum of the document; empty in version 1
    checks: RootChecks = field(compare=False)

    @property
    def has_checks(self) -> bool:
        """Whether the document is sealed, and holds the checks of all chunks."""
        return self.version > 1

    @property
    def n_windows(self) -> int:
        """Number of windows."""
        return self.arrays["references/start"].length

    @property
    def n_ended(self) -> int:
        """Number of windows whose energies or sums are stored."""
        return max(
            (self.arrays[n].length for n in ENDED if n in self.arrays), default=0
        )

    @property
    def has_final(self) -> bool:
        """Whether the last iterate is stored."""
        return "final" in self.arrays

    def n_rows(self, group: RowGroup) -> int:
        """Return the number of rows in a group."""
        return self.arrays[group.path_of("epoch")].length


def parse_document(text: bytes) -> Document:
    """Parse a store's ``zarr.json``; a `SchemaError` lists all problems."""
    try:
        root = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise SchemaError([f"zarr.json: truncated or damaged ({reason})."]) from error
    attributes = root.get("attributes") if isinstance(root, Mapping) else None
    if not isinstance(attributes, Mapping) or attributes.get("format") != FORMAT:
        raise SchemaError(
            [f"not a trajectory store: its attributes lack the format {FORMAT!r}."]
        )
    version = attributes.get("format_version")
    if version not in range(1, FORMAT_VERSION + 1) or type(version) is not int:
        problem = (
            f"format_version: expected 1 to {FORMAT_VERSION}, got {_shown(version)}."
        )
        writer = attributes.get("written_by")
        name = writer if _is_writer(writer) and writer else "a newer trajstore"
        problem = (
            f"{problem} The store was written by {name}; read it with that version or a "
            "newer one: pip install --upgrade trajstore."
        )
        raise SchemaError([problem])
    if damage := _seal_problem(text, version, attributes):
        raise SchemaError([damage])
    spec, problems = _valid_spec(attributes)
    consolidated = root.get("consolidated_metadata")
    metadata = (
        consolidated.get("metadata") if isinstance(consolidated, Mapping) else None
    )
    if not isinstance(metadata, Mapping):
        problem = f"consolidated_metadata: expected an object, got {_shown(metadata)}"
        raise SchemaError([*problems, problem])
    if spec is None or problems:
        raise SchemaError(problems)
    document = _document(spec, attributes, metadata)
    if problems := _array_problems(document.arrays, metadata):
        raise SchemaError(problems)
    return document


def _seal_problem(
    text: bytes, version: int, attributes: Mapping[str, Any]
) -> str | None:
    """Describe what shows that a root document was changed after it was written."""
    if version == 1:
        if {"checksum", "checks"}.intersection(attributes):
            return "format_version: expected 2, because the document has checks, got 1."
        return None
    if is_sealed(text) and seal_is_intact(text):
        return None
    return (
        "zarr.json: does not match its checksum. It is damaged, or was changed by another "
        "program. Restore it from a copy of the store."
    )


def differences(name: str, expected: Mapping[str, object], found: Any) -> list[str]:
    """Return how `found` metadata differs from `expected`, each as ``"name: key: problem"``."""
    if not isinstance(found, Mapping):
        return [f"{name}: missing"]
    problems = []
    for key, value in expected.items():
        if found.get(key) != value:
            text = f"{name}: {key}: expected {value!r}, got {_shown(found.get(key))}"
            problems.append(text)
    return problems


def _valid_spec(attributes: Mapping[str, Any]) -> tuple[RunSpec | None, list[str]]:
    """Return the spec (None if it is invalid) and all problems of the attributes."""
    problems = validate_spec(attributes.get("spec"))
    for key, (is_valid, expected) in _RULES.items():
        if not is_valid(attributes.get(key)):
            problems.append(
                f"{key}: expected {expected}, got {_shown(attributes.get(key))}"
            )
    if problems:
        return None, problems
    spec = RunSpec.from_valid_json(attributes["spec"])
    return spec, _bound_problems(spec, attributes)


def _is_writer(value: object) -> bool:
    """Whether a value names a version of trajstore; older stores have none."""
    return value is None or (
        isinstance(value, str)
        and bool(re.fullmatch(r"trajstore [0-9A-Za-z.+!-]{1,40}", value))
    )


def _is_snapshots(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    for snapshot in value.values():
        if not isinstance(snapshot, Mapping):
            return False
        array, step = snapshot.get("array"), snapshot.get("step")
        if not isinstance(array, str) or not isinstance(step, int):
            return False
        if not re.fullmatch(r"snapshots/[0-9]{1,9}", array):
            return False
    return True


def _is_measurements(value: object) -> bool:
    """Whether the groups of measurements are valid and numbered in order."""
    if not isinstance(value, Mapping):
        return False
    for i, measurement in enumerate(value.values()):
        if (
            not isinstance(measurement, Mapping)
            or measurement.get("group") != f"measurements/{i}"
            or not _is_metrics(measurement.get("metrics"))
        ):
            return False
    return True


def _is_metrics(value: object) -> bool:
    return isinstance(value, list) and is_names(value)


def _is_resumes(value: object) -> bool:
    if not isinstance(value, list):
        return False
    for resumption in value:
        if not isinstance(resumption, Mapping):
            return False
        if not isinstance(resumption.get("step"), int):
            return False
        if not isinstance(resumption.get("n_missing"), int):
            return False
    return True


def _is_status(value: object) -> bool:
    return value in STATUSES


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_object_or_none(value: object) -> bool:
    return value is None or isinstance(value, Mapping)


_RULES: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    "written_by": (_is_writer, "trajstore and a version, or nothing"),
    "status": (_is_status, f"one of {STATUSES}"),
    "created": (_is_text, "a string"),
    "attrs": (_is_object, "an object"),
    "checks": (_is_object_or_none, "an object"),
    "pending_checks": (_is_object_or_none, "an object"),
    "measurements": (_is_measurements, "an object of objects with numbered `group`s"),
    "metrics": (_is_metrics, "a list of different strings"),
    "resumes": (_is_resumes, "a list of objects with `step` and `n_missing`"),
    "snapshots": (_is_snapshots, "an object of objects with `array` and `step`"),
}


def _bound_problems(spec: RunSpec, attributes: Mapping[str, Any]) -> list[str]:
    """Return problems with names and sizes that no real run has."""
    # This check precedes any computation with the sizes.
    reserved = _RESERVED.union(table_columns(spec))
    measurements = attributes["measurements"].values()
    for group in (attributes, *measurements):
        if clash := sorted(reserved.intersection(group["metrics"])):
            return [f"metrics: {clash} are names of tables or coordinates"]
        if spec.scaled and has_some_exponents(group["metrics"]):
            return [f"metrics: expected all of {EXPONENTS} or none of them"]
    dimensions = [len(shape) for shape in spec.shapes]
    sizes = [size for shape in spec.shapes for size in shape]
    is_folded = not (spec.exact or spec.is_packed)
    bounded = {
        "measurements": (len(measurements), MAX_MEASUREMENTS),
        "names: tensors": (len(spec.names), MAX_TENSORS),
        "basis": (spec.basis, MAX_BASIS),
        "samples": (spec.samples, MAX_SAMPLES),
        "window_folds": (spec.window_folds, MAX_WINDOW_FOLDS if is_folded else 0),
        "energies": (spec.energies, is_folded),
        "displacement_sum": (spec.displacement_sum, not spec.exact),
        "shapes: dimensions": (max(dimensions), MAX_DIMENSIONS),
        "shapes: elements in a dimension": (max(sizes, default=1), MAX_SIZE),
    }
    problems = [
        f"{name}: expected at most {bound}, got {_shown(number)}"
        for name, (number, bound) in bounded.items()
        if number > bound
    ]
    if problems:
        return problems
    facts, n_tensors = attributes.get(OPTIMIZER, []), len(spec.names)
    if not is_facts(facts, n_tensors=n_tensors, max_step=MAX_ROWS):
        expected = "the class, tensors and settings of each parameter group"
        return [f"{OPTIMIZER}: expected {expected}, got {_shown(facts)}"]
    size = Layout(spec.names, spec.shapes).size
    if not 0 < size <= MAX_SIZE:
        return [f"shapes: expected 1 to {MAX_SIZE} elements in total, got {size}"]
    return []


def _document(
    spec: RunSpec, attributes: Mapping[str, Any], metadata: Mapping[str, Any]
) -> Document:
    """Build a document from valid attributes and the metadata of the stored arrays."""
    # The attributes determine the specs of the arrays; only lengths come from `metadata`.
    layout = Layout(spec.names, spec.shapes)
    steps = RowGroup("", "", tuple(attributes["metrics"]), 0)
    measurements = {
        name: RowGroup(
            name,
            measurement["group"],
            tuple(measurement["metrics"]),
            first_sign_number(i),
        )
        for i, (name, measurement) in enumerate(attributes["measurements"].items())
    }
    snapshots = {
        name: Snapshot(snapshot["array"], snapshot["step"])
        for name, snapshot in attributes["snapshots"].items()
    }
    arrays: dict[str, StoredArray] = {}
    for group in (steps, *measurements.values()):
        rows = row_arrays(spec, n_metrics=len(group.metrics), group=group.path)
        _add(arrays, rows, _length(metadata, group.path_of("epoch")))
    windows = window_arrays(spec, size=layout.size)
    n_windows = _length(metadata, "references/start")
    _add(arrays, windows, n_windows)
    arrays[KEYFRAMES] = StoredArray(windows[KEYFRAMES], n_keyframes(n_windows))
    ended = [name for name in ENDED if name in windows]
    for name in ended:
        # The last window may be open. Any other length is a problem that the caller finds.
        n_ended = min(max(_length(metadata, ended[0]), n_windows - 1), n_windows)
        arrays[name] = StoredArray(windows[name], max(n_ended, 0))
    vectors = [snapshot.array for snapshot in snapshots.values()]
    vectors += ["final"] if "final" in metadata else []
    vector = StoredArray(vector_array(layout.size, spec.float_type), layout.size)
    arrays |= dict.fromkeys(vectors, vector)
    has_checks = attributes["format_version"] > 1
    checks = RootChecks(
        arrays if has_checks else {},
        attributes.get("checks") or {},
        attributes.get("pending_checks") or {},
    )
    return Document(
        spec=spec,
        layout=layout,
        status=attributes["status"],
        created=attributes["created"],
        written_by=attributes.get("written_by") or "",
        steps=steps,
        measurements=measurements,
        snapshots=snapshots,
        resumes=tuple(attributes["resumes"]),
        attrs=attributes["attrs"],
        optimizer=parse_facts(attributes.get(OPTIMIZER)),
        arrays=arrays,
        version=attributes["format_version"],
        checksum=attributes.get("checksum", ""),
        checks=checks,
    )


def _add(
    arrays: dict[str, StoredArray], specs: Mapping[str, ArraySpec], length: int
) -> None:
    for name, spec in specs.items():
        arrays[name] = StoredArray(spec, length)


def _length(metadata: Mapping[str, Any], name: str) -> int:
    """Return the stored length of an array, 0 if it is missing or invalid."""
    document = metadata.get(name)
    shape = document.get("shape") if isinstance(document, Mapping) else None
    length = shape[0] if isinstance(shape, list) and shape else 0
    return length if isinstance(length, int) and 0 <= length <= MAX_ROWS else 0


def _array_problems(
    arrays: Mapping[str, StoredArray], metadata: Mapping[str, Any]
) -> list[str]:
    """List differences of metadata from the expected arrays, and chunks that are too large."""
    problems, large = [], []
    for name, array in arrays.items():
        problems += differences(name, array.metadata(), metadata.get(name))
        if (size := chunk_size(array.spec).decoded) > MAX_CHUNK_BYTES:
            bound = f"expected at most {MAX_CHUNK_BYTES}"
            large.append(f"{name}: a chunk takes {size} bytes, {bound}")
    return problems + large


def _shown(value: object) -> str:
    """Return the repr of a value, shortened if it is long."""
    text = _REPR.repr(value)
    return text if len(text) <= 1000 else f"{text[:1000]}..."
