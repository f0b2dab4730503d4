"""Arrays of a store: names, shapes, types, chunks, compression and table columns.

`docs/store.md` describes the same for readers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import nan, prod
from typing import Final, Literal, NamedTuple

from trajstore.format.layout import BLOCK, Layout
from trajstore.format.run_spec import RunSpec

STEP: Final = "step"
LAYER: Final = "layer"

SAMPLES: Final = "samples"
"""Array of the indices of the examples in the batch of each step."""

NO_SAMPLE: Final = -1
"""Fill value of ``samples``: a smaller batch, or indices that were not logged."""

KEYFRAMES: Final = "references/keyframes"

GRADIENT_TABLE: Final = ("grad_dot_previous", "grad_sq", "grad_dot_displacement")
"""Per layer: <g, previous g>, |g|^2, <g, x - r>."""

UPDATE_TABLE: Final = ("update_sq", "update_dot_displacement")
"""Per layer: |u|^2 and <u, x - r> with the update u."""

DERIVED_TABLE: Final = ("param_sq", "grad_dot_param")
"""Per layer: |x|^2 and <g, x>, where products with the anchor are recorded."""

DESCRIPTIONS: Final = {
    "lr": ("learning rate", "1"),
    "step_size": ("factor of the gradient in the update", "1"),
    "wall_time": ("time since recording began", "s"),
    "grad_norm": ("norm of the sampled gradient", "1"),
    "update_norm": ("norm of the update", "1"),
    "param_norm": ("norm of the parameters", "1"),
    "grad_sq": ("squared norm of the gradient", "1"),
    "grad_dot_previous": ("inner product of gradient and previous gradient", "1"),
    "grad_dot_displacement": (
        "inner product of gradient and displacement from the anchor",
        "1",
    ),
    "grad_dot_basis": ("inner products of gradient and window basis", "1"),
    "displacement_sq": ("squared norm of the displacement from the anchor", "1"),
    "displacement_dot_basis": ("inner products of displacement and window basis", "1"),
    "update_sq": ("squared norm of the update", "1"),
    "update_dot_displacement": ("inner product of update and displacement", "1"),
    "param_sq": ("squared norm of the parameters", "1"),
    "grad_dot_param": ("inner product of gradient and parameters", "1"),
}
"""Long names and units of scalars and tables."""

METRIC_BLOCK: Final = 32
"""Columns by which the array of scalars grows."""

KEYFRAME_EVERY: Final = 32
"""Windows from one anchor that is stored in full to the next."""

CHUNK_BYTES: Final = 2 << 20
"""Target size of a chunk of rows."""

MAX_CHUNK_ROWS: Final = 8192

VECTOR_CHUNK: Final = {"int8": 1 << 21, "float32": 1 << 20}
"""Elements in a chunk of a parameter vector, coded and in full."""

MAX_BLOCK: Final = 65536
"""Largest block of the Hadamard transform."""

ITEM_SIZE: Final = {
    "uint8": 1,
    "int8": 1,
    "float16": 2,
    "int32": 4,
    "float32": 4,
    "int64": 8,
    "float64": 8,
}

Code = Literal["none", "fast", "dense"]
"""Large float vectors: none. Random bits: fast. Repetitive tables: dense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """An array that grows along its first dimension."""

    dims: tuple[str, ...]
    """Dimension names, slowest first."""
    dtype: str
    inner: tuple[int, ...]
    """Shape without the first dimension."""
    chunk: tuple[int, ...]
    code: Code
    fill: int = 0
    """Fill value of integers; floats have NaN."""

    @property
    def missing(self) -> float:
        """Fill value of absent elements."""
        return nan if self.dtype.startswith("float") else self.fill

    def metadata(self, length: int) -> dict[str, object]:
        """Return the Zarr v3 metadata document of the array with `length` rows."""
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
            "fill_value": "NaN" if self.dtype.startswith("float") else self.fill,
            "codecs": [*codecs, {"name": "crc32c"}],
            "attributes": {},
            "dimension_names": list(self.dims),
            "storage_transformers": [],
        }


class StoredArray(NamedTuple):
    """An array as of a commit."""

    spec: ArraySpec
    length: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return (self.length, *self.spec.inner)

    def metadata(self) -> dict[str, object]:
        """Return the Zarr v3 metadata document."""
        return self.spec.metadata(self.length)


def group_metadata(attributes: Mapping[str, object]) -> dict[str, object]:
    """Return the Zarr v3 metadata document of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def vector_array(size: int) -> ArraySpec:
    """Return the spec of one float32 parameter vector, `size` rows long."""
    chunk = (min(size, VECTOR_CHUNK["float32"]),)
    return ArraySpec(
        dims=("param",), dtype="float32", inner=(), chunk=chunk, code="none"
    )


def step_arrays(
    spec: RunSpec, *, size: int, n_metrics: int, n_blocks: int
) -> dict[str, ArraySpec]:
    """Return the arrays with one row per step, by name; vectors have `size` elements."""
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


def row_arrays(
    spec: RunSpec, *, n_metrics: int, group: str = ""
) -> dict[str, ArraySpec]:
    """Return the arrays of steps, or of the measurement in `group`, by path."""
    arrays = step_arrays(
        spec,
        size=Layout(spec.names, spec.shapes).size,
        n_metrics=n_metric_columns(0),
        n_blocks=n_blocks(spec.sketch_bits),
    )
    # Names that were logged late have widened the array, not its chunks.
    inner = (n_metric_columns(n_metrics),)
    arrays["scalars"] = replace(arrays["scalars"], inner=inner)
    if not group:
        return arrays
    # Rows of a measurement also have the number of optimizer steps taken before.
    arrays[STEP] = replace(arrays["epoch"], dtype="int64")
    arrays.pop(SAMPLES, None)
    return {f"{group}/{name}": array for name, array in arrays.items()}


def window_arrays(
    spec: RunSpec, *, size: int, block: int = BLOCK
) -> dict[str, ArraySpec]:
    """Return the arrays with one row per window, by path; one scale per `block`."""
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
        KEYFRAMES: _wide("keyframe", "float32", size, code="none"),
    }


def table_columns(spec: RunSpec) -> dict[str, slice]:
    """Return the columns of each quantity in the array ``tables``, in their order."""
    # Products with the basis have one column per basis vector. Without a basis they have
    # none, and the derived quantities are absent: these follow from products with the
    # first basis vector, the anchor.
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


def n_columns(spec: RunSpec) -> int:
    """Return the number of columns of the array ``tables``."""
    *_, last = table_columns(spec).values()
    return int(last.stop)


def first_sign_number(measurement: int) -> int:
    """Return the number that seeds the random signs of a measurement's first row."""
    # The next rows have the next numbers. Steps are seeded by their own numbers. Counts of
    # rows stay below 2**40, so that no two rows share a number.
    return (measurement + 1) << 40


def n_metric_columns(n_metrics: int) -> int:
    """Return the number of columns of ``scalars``, a multiple of `METRIC_BLOCK`."""
    return max(1, -(-n_metrics // METRIC_BLOCK)) * METRIC_BLOCK


def n_keyframes(n_windows: int) -> int:
    """Return the number of anchors that are stored in full."""
    return -(-n_windows // KEYFRAME_EVERY)


def n_blocks(size: int) -> int:
    """Return the number of Hadamard blocks in a vector of `size`, a power of two."""
    return max(1, size // MAX_BLOCK)


def _rows(
    dtype: str,
    *inner: tuple[str, int],
    first: str = STEP,
    code: Code = "dense",
) -> ArraySpec:
    """Describe an array whose chunks hold many rows of a few KB."""
    shape = tuple([size for _, size in inner])
    row_bytes = ITEM_SIZE[dtype] * prod(shape)
    rows = max(1, min(MAX_CHUNK_ROWS, CHUNK_BYTES // max(1, row_bytes)))
    return ArraySpec(
        dims=(first, *[name for name, _ in inner]),
        dtype=dtype,
        inner=shape,
        chunk=(1 << (rows.bit_length() - 1), *[max(1, size) for size in shape]),
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
