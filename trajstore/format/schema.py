"""What a trajectory store contains, independent of how it is written.

Only the standard library is used here: the format is checked, and tested, without
opening a store. `docs/store.md` describes the same for readers.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from math import isnan, nan, prod
from typing import Any, Final, Literal, Self, cast

FORMAT: Final = "trajstore"
FORMAT_VERSION: Final = 1

LOCK: Final = ".lock"
"""File in the store that its writer holds a lock on."""

WRITER: Final = ".writer"
"""Document in the store that says who writes it, while somebody does."""

LEASE_SECONDS: Final = 600
"""How long a writer on object storage may be silent before another takes its place."""

STEP: Final = "step"
LAYER: Final = "layer"

SAMPLES: Final = "samples"
"""Array of the indices of the examples in the batch of each step."""

NO_SAMPLE: Final = -1
"""What stands in it where there is no further example, or where they are not known."""

STATUSES: Final = ("running", "complete", "failed")
"""What the store says of its run: still open, closed, or closed after an exception."""

GRADIENT_TABLE: Final = ("grad_dot_previous", "grad_sq", "grad_dot_displacement")
"""Per tensor: <g, previous g>, |g|^2, <g, x - r>."""

UPDATE_TABLE: Final = ("update_sq", "update_dot_displacement")
"""Per tensor: |u|^2 and <u, x - r> with u the change of x in the step."""

DERIVED_TABLE: Final = ("param_sq", "grad_dot_param")
"""Per tensor: |x|^2 and <g, x>, where products with the reference are recorded."""


DESCRIPTIONS: Final = {
    "lr": ("learning rate", "1"),
    "step_size": ("what the optimizer multiplied the gradient with", "1"),
    "wall_time": ("time since the recording began", "s"),
    "grad_norm": ("norm of the sampled gradient", "1"),
    "update_norm": ("norm of the change of the parameters in the step", "1"),
    "param_norm": ("norm of the parameters", "1"),
    "grad_sq": ("squared norm of the gradient", "1"),
    "grad_dot_previous": ("gradient times the gradient of the step before", "1"),
    "grad_dot_displacement": ("gradient times parameters less reference", "1"),
    "grad_dot_basis": ("gradient times the basis of the window", "1"),
    "displacement_sq": ("squared norm of parameters less reference", "1"),
    "displacement_dot_basis": ("parameters less reference times the basis", "1"),
    "update_sq": ("squared norm of the change of the parameters", "1"),
    "update_dot_displacement": ("change times parameters less reference", "1"),
    "param_sq": ("squared norm of the parameters", "1"),
    "grad_dot_param": ("gradient times parameters", "1"),
}
"""Long names and units of what is recorded."""

METRIC_BLOCK: Final = 32
"""Columns by which the array of scalars grows."""

KEYFRAME_EVERY: Final = 32
"""Windows between references that are stored in full."""

CHUNK_BYTES: Final = 2 << 20
"""Aimed size of a chunk of rows."""

MAX_CHUNK_ROWS: Final = 8192

VECTOR_CHUNK: Final = {"int8": 1 << 21, "float32": 1 << 20}
"""Elements in a chunk of a parameter vector, coded and in full."""


MAX_BLOCK: Final = 65536
"""Largest block the Hadamard transform mixes."""

Code = Literal["none", "fast", "dense"]


def n_blocks(size: int) -> int:
    """Return how many Hadamard blocks a vector of `size`, a power of two, has."""
    return max(1, size // MAX_BLOCK)


class SchemaError(ValueError):
    """Metadata that does not describe a valid trajectory.

    Attributes
    ----------
    problems : tuple of str
        Every problem found, not only the first one.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Everything about a run that is known when its recording begins.

    Attributes
    ----------
    names : tuple of str
        Names of the recorded parameter tensors.
    shapes : tuple of tuple of int
        Their shapes.
    seed : int
        Seed of all random signs.
    sketch_bits : int
        Signs in the sketch of one gradient, a power of two.
    basis : int
        Vectors of the low-rank basis: the reference and ``basis - 1`` displacements; 0 for
        no basis.
    probes : int
        Numbers in a fixed probe, a power of two.
    steps_per_epoch, reference_every, total_steps : int or None
        See `trajstore.format.windows.Windows`.
    exact : bool
        Whether whole gradients and displacements are stored instead of sketches.
    samples : int, default: 0
        Most examples in a batch whose indices are kept; 0 for none. Older stores do not
        say it.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    seed: int
    sketch_bits: int
    basis: int
    probes: int
    steps_per_epoch: int | None
    reference_every: int | None
    total_steps: int | None
    exact: bool
    samples: int = 0

    @classmethod
    def from_json(cls, document: object) -> Self:
        """Build a spec from decoded JSON.

        Parameters
        ----------
        document : object
            As returned by `to_json`.

        Returns
        -------
        RunSpec
            Equal to the one `to_json` was called on.

        Raises
        ------
        SchemaError
            If `validate_spec` finds any problem.
        """
        if problems := validate_spec(document):
            raise SchemaError(problems)
        values = cast("Mapping[str, Any]", document)
        shapes = tuple(tuple(shape) for shape in values["shapes"])
        return cls(**{**values, "names": tuple(values["names"]), "shapes": shapes})

    def to_json(self) -> dict[str, object]:
        """Return a JSON-serialisable description, the inverse of `from_json`."""
        shapes = [list(shape) for shape in self.shapes]
        return {**asdict(self), "names": list(self.names), "shapes": shapes}


def validate_spec(document: object) -> list[str]:
    """List every reason why `document` does not describe a run.

    Parameters
    ----------
    document : object
        Decoded JSON.

    Returns
    -------
    list of str
        One ``"key: problem"`` for each, empty if there is none.
    """
    if not isinstance(document, Mapping):
        return [f"spec: expected an object, got {document!r}"]
    known = [field.name for field in fields(RunSpec)]
    needed = [field.name for field in fields(RunSpec) if field.default is MISSING]
    problems = [f"{key}: missing" for key in needed if key not in document]
    problems += [f"{key}: unknown" for key in document if key not in known]
    problems += [
        f"{key}: expected {expected}, got {document[key]!r}"
        for key, (is_valid, expected) in _RULES.items()
        if key in document and not is_valid(document[key])
    ]
    if not problems and len(document["names"]) != len(document["shapes"]):
        problems.append(
            f"shapes: expected one for each of the {len(document['names'])} names, got "
            f"{len(document['shapes'])}"
        )
    return problems


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_seed(value: object) -> bool:
    return _is_int(value) and 0 <= value < 1 << 64  # type: ignore[operator]


def _is_count(value: object) -> bool:
    return _is_int(value) and value >= 1  # type: ignore[operator]


def _is_natural(value: object) -> bool:
    return _is_int(value) and value >= 0  # type: ignore[operator]


def _is_count_or_none(value: object) -> bool:
    return value is None or _is_count(value)


def is_sketch_size(value: object) -> bool:
    """Whether a number of signs or probes can be used: a power of two, 8 to 2**24."""
    return _is_int(value) and value in {1 << k for k in range(3, 25)}


def _is_names(value: object) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(name, str) for name in value)
        and len(set(value)) == len(value)
    )


def _is_shapes(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(shape, (list, tuple))
        and all(_is_int(n) and n >= 0 for n in shape)
        and prod(shape) < 1 << 40
        for shape in value
    )


_COUNT_OR_NONE: Final = (_is_count_or_none, "an integer of at least 1, or None")
_SIZE: Final = (is_sketch_size, "a power of two from 8 to 2**24")

_RULES: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    "names": (_is_names, "a list of different strings"),
    "shapes": (_is_shapes, "a list of lists of integers"),
    "seed": (_is_seed, "an integer from 0 to 2**64 - 1"),
    "sketch_bits": _SIZE,
    "basis": (_is_natural, "an integer of at least 0"),
    "probes": _SIZE,
    "steps_per_epoch": _COUNT_OR_NONE,
    "reference_every": _COUNT_OR_NONE,
    "total_steps": _COUNT_OR_NONE,
    "exact": (lambda value: isinstance(value, bool), "true or false"),
    "samples": (_is_natural, "an integer of at least 0"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """One array that grows along its first dimension.

    Attributes
    ----------
    dims : tuple of str
        Dimension names, slowest first.
    dtype : str
        Zarr's name of the data type.
    inner : tuple of int
        Shape without the first dimension.
    chunk : tuple of int
        Shape of a chunk.
    code : {"none", "fast", "dense"}
        Compression: none for large vectors of floats; fast for random bits, of which
        only the unused end of a chunk compresses; dense for what repeats itself.
    fill : int, default: 0
        What numbers that are not there read as, if they are integers; others are NaN.
    """

    dims: tuple[str, ...]
    dtype: str
    inner: tuple[int, ...]
    chunk: tuple[int, ...]
    code: Code
    fill: int = 0

    @property
    def missing(self) -> float:
        """What numbers that are not there read as."""
        return nan if self.dtype.startswith("float") else self.fill

    def metadata(self, length: int) -> dict[str, object]:
        """Return the Zarr v3 metadata document of the array.

        Parameters
        ----------
        length : int
            Size of the first dimension.

        Returns
        -------
        dict
            Serialisable to JSON.
        """
        codecs: list[dict[str, object]] = [
            {"name": "bytes", "configuration": {"endian": "little"}}
        ]
        if self.code != "none":
            blosc = {
                "typesize": ITEM_SIZE[self.dtype],
                "cname": "zstd" if self.code == "dense" else "lz4",
                "clevel": 1,
                "shuffle": "shuffle" if self.code == "dense" else "noshuffle",
                "blocksize": 0,
            }
            codecs.append({"name": "blosc", "configuration": blosc})
        if self.code == "dense" and self.inner:
            # Transposed, the values of one column lie together and compress better.
            order = list(reversed(range(1 + len(self.inner))))
            codecs.insert(0, {"name": "transpose", "configuration": {"order": order}})
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [length, *self.inner],
            "data_type": self.dtype,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": list(self.chunk)},
            },
            "chunk_key_encoding": {
                "name": "default",
                "configuration": {"separator": "/"},
            },
            "fill_value": "NaN" if isnan(self.missing) else self.fill,
            "codecs": [*codecs, {"name": "crc32c"}],
            "attributes": {},
            "dimension_names": list(self.dims),
            "storage_transformers": [],
        }


ITEM_SIZE: Final = {
    "uint8": 1,
    "int8": 1,
    "float16": 2,
    "int32": 4,
    "float32": 4,
    "int64": 8,
    "float64": 8,
}


def group_metadata(attributes: Mapping[str, object]) -> dict[str, object]:
    """Return the Zarr v3 metadata document of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def vector_array(size: int) -> ArraySpec:
    """Describe one float32 parameter vector, as long as its first dimension."""
    chunk = (min(size, VECTOR_CHUNK["float32"]),)
    return ArraySpec(
        dims=("param",), dtype="float32", inner=(), chunk=chunk, code="none"
    )


def step_arrays(
    spec: RunSpec, *, size: int, n_metrics: int, n_blocks: int
) -> dict[str, ArraySpec]:
    """Describe the arrays with one row per optimizer step.

    Parameters
    ----------
    spec : RunSpec
        What is recorded.
    size : int
        Length of the flat parameter vector.
    n_metrics : int
        Columns of the array of scalars.
    n_blocks : int
        Scales of one sketch.

    Returns
    -------
    dict from str to ArraySpec
        By name of the array. The rows of measurements have the array ``step``, too, how
        many optimizer steps had been taken, and no ``samples``.
    """
    tables = ((LAYER, len(spec.names)), ("quantity", n_columns(spec)))
    arrays = {
        "epoch": _rows("int32"),
        "iteration": _rows("int32"),
        "window": _rows("int32"),
        "scalars": _rows("float64", ("metric", n_metrics)),
        "tables": _rows("float32", *tables),
    }
    if spec.exact:
        arrays["gradient"] = _rows("float32", ("param", size), code="none")
        arrays["displacement"] = _rows("float32", ("param", size), code="none")
    else:
        probe = ("probe", spec.probes)
        arrays["signs"] = _rows("uint8", ("byte", spec.sketch_bits // 8), code="fast")
        arrays["scales"] = _rows("float32", ("block", n_blocks))
        arrays["gradient_probes"] = _rows("int8", probe, code="fast")
        arrays["displacement_probes"] = _rows("float16", probe, code="fast")
        arrays["probe_scales"] = _rows("float32", ("probed", 2))
    if spec.samples:
        indices = _rows("int64", ("sample", spec.samples))
        arrays[SAMPLES] = replace(indices, fill=NO_SAMPLE)
    return arrays


def window_arrays(spec: RunSpec, *, size: int, block: int) -> dict[str, ArraySpec]:
    """Describe the arrays with one row per window.

    Parameters
    ----------
    spec : RunSpec
        What is recorded.
    size : int
        Length of the flat parameter vector.
    block : int
        Elements that share a scale in a coded reference.

    Returns
    -------
    dict from str to ArraySpec
        By name of the array, below ``references/``.
    """
    n_layers = len(spec.names)
    arrival = ((LAYER, n_layers), ("coordinate", 1 + spec.basis))
    probes = ("probe", 0 if spec.exact else spec.probes)
    return {
        "references/start": _rows("int64", first="window"),
        "references/weights": _rows("float32", (LAYER, n_layers), first="window"),
        "references/arrival": _rows("float32", *arrival, first="window"),
        "references/probes": _rows("float64", probes, first="window"),
        "references/codes": _wide("window", "int8", size, code="dense"),
        "references/scales": _rows("float32", ("block", size // block), first="window"),
        "references/keyframes": _wide("keyframe", "float32", size, code="none"),
    }


def table_columns(spec: RunSpec) -> dict[str, slice]:
    """Return the columns of each quantity in the array ``tables``.

    ``grad_dot_basis`` and ``displacement_dot_basis`` have one column for each vector of
    the basis, the others one column. Without a basis they have none, and the quantities of
    `DERIVED_TABLE` are missing: these follow from products with its first vector.

    Parameters
    ----------
    spec : RunSpec
        What is recorded.

    Returns
    -------
    dict from str to slice
        In the order of the columns.
    """
    widths = dict.fromkeys(GRADIENT_TABLE, 1)
    widths["grad_dot_basis"] = spec.basis
    widths["displacement_sq"] = 1
    widths["displacement_dot_basis"] = spec.basis
    widths |= dict.fromkeys(UPDATE_TABLE, 1)
    if spec.basis:
        widths |= dict.fromkeys(DERIVED_TABLE, 1)
    columns, start = {}, 0
    for name, width in widths.items():
        columns[name] = slice(start, start + width)
        start += width
    return columns


def first_sign_number(measurement: int) -> int:
    """Return what selects the random signs of the first row of a measurement.

    Those of the next rows are selected by the next numbers. No step and no row of another
    measurement has the same.

    Parameters
    ----------
    measurement : int
        Which of the run's measurements.

    Returns
    -------
    int
        At least 2**40.
    """
    return (measurement + 1) << 40


def n_metric_columns(n_metrics: int) -> int:
    """Return the number of columns of ``scalars`` for some metrics: whole blocks."""
    return max(1, -(-n_metrics // METRIC_BLOCK)) * METRIC_BLOCK


def n_columns(spec: RunSpec) -> int:
    """Return the number of columns of the array ``tables``."""
    return sum(c.stop - c.start for c in table_columns(spec).values())


def _rows(
    dtype: str,
    *inner: tuple[str, int],
    first: str = STEP,
    code: Code = "dense",
) -> ArraySpec:
    """Describe an array whose chunks hold many rows of a few KB."""
    shape = tuple(size for _, size in inner)
    row_bytes = ITEM_SIZE[dtype] * prod(shape)
    rows = max(1, min(MAX_CHUNK_ROWS, CHUNK_BYTES // max(1, row_bytes)))
    return ArraySpec(
        dims=(first, *(name for name, _ in inner)),
        dtype=dtype,
        inner=shape,
        chunk=(1 << (rows.bit_length() - 1), *(max(1, size) for size in shape)),
        code=code,
    )


def _wide(first: str, dtype: str, size: int, *, code: Code) -> ArraySpec:
    """Describe an array whose rows are parameter vectors, each in its own chunks."""
    return ArraySpec(
        dims=(first, "param"),
        dtype=dtype,
        inner=(size,),
        chunk=(1, min(size, VECTOR_CHUNK[dtype])),
        code=code,
    )
