"""Define the arrays of a store: names, shapes, chunks, compression and table columns.

`docs/store.md` describes the arrays for users who read a store without trajstore.
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
"""Name of the array that stores the indices of the examples in each step's batch."""

NO_SAMPLE: Final = -1
"""Fill value of ``samples``: after the end of a small batch, and for indices not logged."""

KEYFRAMES: Final = "references/keyframes"

ENERGIES: Final = "references/energies"
SUM_SIGNS: Final = "references/sum_signs"
SUM_SCALES: Final = "references/sum_scales"
DISPLACEMENT_CODES: Final = "references/displacement_codes"
DISPLACEMENT_SCALES: Final = "references/displacement_scales"

ENDED: Final = (
    ENERGIES,
    SUM_SIGNS,
    SUM_SCALES,
    DISPLACEMENT_CODES,
    DISPLACEMENT_SCALES,
)
"""Arrays whose rows are written when a window ends: a run without an end lacks the last row."""

# g: gradient, u: update, x: iterate, r: anchor of the window.
GRADIENT_TABLE: Final = ("grad_dot_previous", "grad_sq", "grad_dot_displacement")
"""Products of the gradient, by layer: <g, previous g>, |g|^2 and <g, x - r>."""

UPDATE_TABLE: Final = ("update_sq", "update_dot_displacement")
"""Products of the update, by layer: |u|^2 and <u, x - r>."""

DERIVED_TABLE: Final = ("param_sq", "grad_dot_param")
"""Products that follow from products with the anchor, by layer: |x|^2 and <g, x>."""

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
"""Number of columns by which the array ``scalars`` grows."""

KEYFRAME_EVERY: Final = 32
"""Number of windows from one keyframe to the next."""

CHUNK_BYTES: Final = 2 << 20
"""Target size of a chunk of rows."""

MAX_CHUNK_ROWS: Final = 8192

VECTOR_CHUNK: Final = {"int8": 1 << 21, "float32": 1 << 20, "float64": 1 << 19}
"""Elements in a chunk of a parameter vector: coded (int8) or in full."""

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
"""Compression: none for float vectors, fast for random bits, dense for tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """An array that grows along its first dimension."""

    dims: tuple[str, ...]
    """Dimension names, slowest first."""
    dtype: str
    inner: tuple[int, ...]
    """Shape of one row: the shape of the array without its first dimension."""
    chunk: tuple[int, ...]
    code: Code
    fill: int = 0
    """Fill value of an integer array; a float array is filled with NaN."""

    @property
    def missing(self) -> float:
        """Value of absent elements."""
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
            # A transposed chunk stores each column contiguously, which compresses better.
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
    """An array with its length as of one commit."""

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


def vector_array(size: int, dtype: str = "float32") -> ArraySpec:
    """Return the spec of a parameter vector with `size` elements, stored in full."""
    chunk = (min(size, VECTOR_CHUNK[dtype]),)
    return ArraySpec(dims=("param",), dtype=dtype, inner=(), chunk=chunk, code="none")


def step_arrays(
    spec: RunSpec, *, size: int, n_metrics: int, n_blocks: int
) -> dict[str, ArraySpec]:
    """Return the specs of the arrays with one row per step, by name."""
    # `size` is the number of elements of a flat parameter vector.
    tables = ((LAYER, len(spec.names)), ("quantity", n_columns(spec)))
    real = spec.float_type
    arrays = {
        "epoch": _small_rows("int32"),
        "iteration": _small_rows("int32"),
        "window": _small_rows("int32"),
        "scalars": _small_rows("float64", ("metric", n_metrics)),
        "tables": _small_rows(real, *tables),
    }
    if spec.exact:
        code: Code = "fast" if spec.compressed else "none"
        arrays["gradient"] = _small_rows(real, ("param", size), code=code)
        arrays["displacement"] = _small_rows(real, ("param", size), code=code)
    else:
        probe = ("probe", spec.probes)
        arrays["signs"] = _small_rows(
            "uint8", ("byte", spec.sketch_bits // 8), code="fast"
        )
        arrays["scales"] = _small_rows(real, ("block", n_blocks))
        arrays["gradient_probes"] = _small_rows("int8", probe, code="fast")
        arrays["displacement_probes"] = _small_rows("float16", probe, code="fast")
        arrays["probe_scales"] = _small_rows(real, ("probed", 2))
    if spec.samples:
        indices = _small_rows("int64", ("sample", spec.samples))
        arrays[SAMPLES] = replace(indices, fill=NO_SAMPLE)
    return arrays


def row_arrays(
    spec: RunSpec, *, n_metrics: int, group: str = ""
) -> dict[str, ArraySpec]:
    """Return the specs of the arrays of steps, or of the measurement in `group`, by path."""
    arrays = step_arrays(
        spec,
        size=Layout(spec.names, spec.shapes).size,
        n_metrics=n_metric_columns(0),
        n_blocks=n_blocks(spec.sketch_numbers),
    )
    # Scalars logged later for the first time widen the array; its chunks keep their width.
    inner = (n_metric_columns(n_metrics),)
    arrays["scalars"] = replace(arrays["scalars"], inner=inner)
    if not group:
        return arrays
    # A row of a measurement also stores the number of optimizer steps before it.
    arrays[STEP] = replace(arrays["epoch"], dtype="int64")
    arrays.pop(SAMPLES, None)
    return {f"{group}/{name}": array for name, array in arrays.items()}


def window_arrays(
    spec: RunSpec, *, size: int, block: int = BLOCK
) -> dict[str, ArraySpec]:
    """Return the specs of the arrays with one row per window, by path."""
    # `block` is the number of codes that share a scale.
    n_layers = len(spec.names)
    arrival = ((LAYER, n_layers), ("coordinate", 1 + spec.basis))
    probes = ("probe", 0 if spec.exact else spec.probes)
    arrays = {
        "references/start": _small_rows("int64", first="window"),
        "references/weights": _small_rows("float32", (LAYER, n_layers), first="window"),
        "references/arrival": _small_rows("float32", *arrival, first="window"),
        "references/probes": _small_rows("float64", probes, first="window"),
        "references/codes": _vector_rows("window", "int8", size, code="dense"),
        "references/scales": _small_rows(
            "float32", ("block", size // block), first="window"
        ),
        KEYFRAMES: _vector_rows("keyframe", spec.float_type, size, code="none"),
    }
    if spec.energies:
        blocks = ("block", size // block)
        arrays[ENERGIES] = _small_rows("float16", blocks, first="window")
    if n_folds := spec.window_folds:
        folds = ("fold", n_folds)
        n = spec.sketch_numbers
        signs, scales = ("byte", n // 8), ("scale", n_blocks(n))
        arrays[SUM_SIGNS] = _small_rows(
            "uint8", folds, signs, first="window", code="fast"
        )
        arrays[SUM_SCALES] = _small_rows("float32", folds, scales, first="window")
    if spec.displacement_sum:
        codes = ("byte", spec.sketch_bits // 8)
        scales = ("scale", n_blocks(spec.sketch_numbers))
        arrays[DISPLACEMENT_CODES] = _small_rows(
            "uint8", codes, first="window", code="fast"
        )
        arrays[DISPLACEMENT_SCALES] = _small_rows("float32", scales, first="window")
    return arrays


def table_columns(spec: RunSpec) -> dict[str, slice]:
    """Return the columns of the array ``tables`` by quantity, in stored order."""
    # Products with the basis have one column per basis vector. The derived quantities
    # follow from products with the anchor, the first basis vector, so they need a basis.
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
    # Each further row of the measurement has the next number, and steps are seeded by
    # their step numbers. No table reaches 2**40 rows, so no two rows share a number.
    return (measurement + 1) << 40


def n_metric_columns(n_metrics: int) -> int:
    """Return the number of columns of ``scalars``, a multiple of `METRIC_BLOCK`."""
    return max(1, -(-n_metrics // METRIC_BLOCK)) * METRIC_BLOCK


def n_keyframes(n_windows: int) -> int:
    """Return the number of keyframes in `n_windows` windows."""
    return -(-n_windows // KEYFRAME_EVERY)


def n_blocks(size: int) -> int:
    """Return the number of Hadamard blocks in a vector; its `size` is a power of two."""
    return max(1, size // MAX_BLOCK)


def _small_rows(
    dtype: str,
    *inner: tuple[str, int],
    first: str = STEP,
    code: Code = "dense",
) -> ArraySpec:
    """Return the spec of an array with small rows, many of which share a chunk."""
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


def _vector_rows(first: str, dtype: str, size: int, *, code: Code) -> ArraySpec:
    """Return the spec of an array of parameter vectors, which do not share chunks."""
    return ArraySpec(
        dims=(first, "param"),
        dtype=dtype,
        inner=(size,),
        chunk=(1, min(size, VECTOR_CHUNK[dtype])),
        code=code,
    )
